# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
# What our own tests, examples and benchmarks are built with, and users are not.
set(MOE_SANITIZE "" CACHE STRING "Sanitizers of our own build, separated by commas")

add_library(moe_dev INTERFACE)
target_compile_options(moe_dev INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
if(MOE_SANITIZE)
  target_compile_options(moe_dev INTERFACE -fsanitize=${MOE_SANITIZE} -fno-sanitize-recover=all
                         -fno-omit-frame-pointer)
  target_link_options(moe_dev INTERFACE -fsanitize=${MOE_SANITIZE})
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # The instrumentation hides initialisation from this warning, which then fires on std::optional.
    target_compile_options(moe_dev INTERFACE -Wno-maybe-uninitialized)
  endif()
endif()

# moe_dev_optimise(TARGET...): of what computes much. Under sanitizers it is compiled with -O1,
# whatever the rest has: cmake/matrix.sh gives it -O0, which takes half the time.
function(moe_dev_optimise)
  foreach(target ${ARGN})
    if(MOE_SANITIZE)
      target_compile_options(${target} PRIVATE -O1)
    endif()
  endforeach()
endfunction()

# The usual layers and the kernels, compiled once for tests, examples and benchmarks.
add_library(moe_compiled STATIC include/moe/instances.cpp)
target_compile_definitions(moe_compiled PUBLIC MOE_EXTERN_INSTANCES)
target_link_libraries(moe_compiled PUBLIC moe PRIVATE moe_dev)
moe_dev_optimise(moe_compiled)
