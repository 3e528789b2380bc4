# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# The README's table of rules is what PROGRAM prints.
execute_process(COMMAND ${PROGRAM} RESULT_VARIABLE status OUTPUT_VARIABLE table)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${PROGRAM} failed")
endif()
file(READ ${README} readme)
string(FIND "${readme}" "\n${table}\n" at)
if(at EQUAL -1)
  message(FATAL_ERROR "the README's table of rules is out of date; it must be:\n${table}")
endif()
