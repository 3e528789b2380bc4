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
