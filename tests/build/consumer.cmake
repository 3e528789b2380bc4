# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Builds and runs the consumer project in WORK, in one of the ways of embedding moe.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    list(JOIN ARGN " " line)
    message(FATAL_ERROR "${line}\n${output}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

set(consumers ${SOURCE}/tests/build/consumers)
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK})
# Only the installed package is asked for its optional component.
set(WITHOUT_JSON ON)
if(WAY STREQUAL "find_package")
  set(WITHOUT_JSON OFF)
endif()
if(WAY STREQUAL "plain_include")
  set(includes -I${SOURCE}/include)
  foreach(folder IN LISTS EIGEN)
    list(APPEND includes -I${folder})
  endforeach()
  set(programs ${WORK}/consumer ${WORK}/consumer_of_instances)
  set(compile ${CXX} -std=c++20 ${includes})
  run(${compile} ${consumers}/main.cpp -o ${WORK}/consumer)
  # The file leaves its layer to instances.cpp, and does not link without.
  run(${compile} -DMOE_EXTERN_INSTANCES -c ${consumers}/main.cpp -o ${WORK}/main.o)
  execute_process(COMMAND ${CXX} ${WORK}/main.o -o ${WORK}/incomplete RESULT_VARIABLE status
                  ERROR_QUIET)
  if(status EQUAL 0)
    message(FATAL_ERROR "the layer was compiled in spite of MOE_EXTERN_INSTANCES")
  endif()
  # As with a precompiled header, which has seen the umbrella header before.
  run(${compile} -DMOE_EXTERN_INSTANCES -include moe/moe.hpp ${WORK}/main.o
      ${SOURCE}/include/moe/instances.cpp -o ${WORK}/consumer_of_instances)
else()
  set(arguments -DMOE_SOURCE=${SOURCE})
  set(TYPE Release)
  if(WAY STREQUAL "find_package")
    set(TYPE Debug)  # It compiles moe::instances, in half the time so.
    run(${CMAKE_COMMAND} --install ${MOE_BINARY} --prefix ${WORK}/prefix)
    list(APPEND arguments -DCMAKE_PREFIX_PATH=${WORK}/prefix)
  endif()
  run(${CMAKE_COMMAND} -S ${consumers}/${WAY} -B ${WORK}/build -G ${GENERATOR}
      -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=${WITHOUT_JSON}
      -DCMAKE_BUILD_TYPE=${TYPE} ${arguments})
  run(${CMAKE_COMMAND} --build ${WORK}/build)
  set(programs ${WORK}/build/consumer)
  if(WAY STREQUAL "find_package")
    list(APPEND programs ${WORK}/build/consumer_of_instances)
  endif()
endif()
foreach(program IN LISTS programs)
  run(${program})
  if(NOT output MATCHES "^3 tokens of 8, [1-9][0-9]* experts used\n$")
    message(FATAL_ERROR "the consumer printed: ${output}")
  endif()
endforeach()
