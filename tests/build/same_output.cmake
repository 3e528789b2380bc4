# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Programs A and B must print the same.
foreach(program A B)
  execute_process(COMMAND ${${program}} RESULT_VARIABLE status OUTPUT_VARIABLE output_${program})
  if(NOT status EQUAL 0 OR output_${program} STREQUAL "")
    message(FATAL_ERROR "${${program}} failed: ${status}")
  endif()
endforeach()
message("${output_A}")
if(NOT output_A STREQUAL output_B)
  message(FATAL_ERROR "the other program printed\n${output_B}")
endif()
