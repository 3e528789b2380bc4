# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# FILE must be the JSON of a benchmark run in which none failed.
file(READ ${FILE} text)
string(JSON count LENGTH "${text}" benchmarks)
if(count LESS 1)
  message(FATAL_ERROR "no benchmark ran")
endif()
math(EXPR last "${count} - 1")
foreach(i RANGE ${last})
  string(JSON name GET "${text}" benchmarks ${i} name)
  string(JSON time GET "${text}" benchmarks ${i} real_time)
  string(JSON error ERROR_VARIABLE none GET "${text}" benchmarks ${i} error_occurred)
  if(NOT time GREATER 0 OR error STREQUAL "ON")
    message(FATAL_ERROR "${name} failed")
  endif()
endforeach()
message(STATUS "${count} benchmarks ran")
