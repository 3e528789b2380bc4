# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Disassembles a program's object and fails on instructions beyond the baseline outside of the
# kernels that are chosen at run time: they would crash older machines.
# Arguments: OBJDUMP, and OBJECT, or CXX, FILE, INCLUDE, EIGEN, FLAGS, WORK to compile one.
include_guard()
if(NOT OBJECT)
  set(OBJECT ${WORK}/isa_leak${FLAGS}.o)
  file(MAKE_DIRECTORY ${WORK})
  execute_process(COMMAND ${CXX} -std=c++20 -fopenmp ${FLAGS} -I${INCLUDE} -isystem ${EIGEN}
                          -c ${FILE} -o ${OBJECT} COMMAND_ERROR_IS_FATAL ANY)
endif()
execute_process(COMMAND ${OBJDUMP} -d -C --no-show-raw-insn ${OBJECT} OUTPUT_VARIABLE text
                COMMAND_ERROR_IS_FATAL ANY)
# Lists separate by semicolons and brackets; names have both.
string(REGEX REPLACE "[][;]" "." text "${text}")
string(REPLACE "\n" ";" lines "${text}")
set(function "")
set(leaks "")
set(wide 0)
foreach(line IN LISTS lines)
  if(line MATCHES "^[0-9a-f]+ <(.*)>:$")
    set(function "${CMAKE_MATCH_1}")
  elseif(line MATCHES "^ +[0-9a-f]+:\t(v[a-z0-9]+|[a-z0-9]+ .*%[yz]mm)")
    # The function's own name, behind its result's type, if it has one in front; lambdas have their
    # function's. Another library's function for one of our types does not count as ours.
    if(function MATCHES "^([a-z]+ )?moe::[a-z0-9_]+::kernels::(avx2|avx512)::")
      math(EXPR wide "${wide} + 1")
    else()
      list(APPEND leaks "${function}: ${line}")
    endif()
  endif()
endforeach()
if(wide LESS 1000)
  message(FATAL_ERROR "only ${wide} wide instructions in all: is this the right object?")
endif()
if(leaks)
  list(LENGTH leaks count)
  list(SUBLIST leaks 0 5 some)
  string(REPLACE ";" "\n" some "${some}")
  message(FATAL_ERROR "${count} instructions beyond the baseline, such as\n${some}")
endif()
message("${wide} wide instructions, all in kernels")
