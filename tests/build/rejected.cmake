# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# FILE must compile as it is, and with FLAGS must be rejected with a text that holds MESSAGE.
set(includes -I${INCLUDE})
foreach(folder IN LISTS EIGEN)
  list(APPEND includes -I${folder})
endforeach()
set(compile ${CXX} -std=c++20 -fsyntax-only ${includes} ${FILE})
execute_process(COMMAND ${compile} RESULT_VARIABLE status ERROR_VARIABLE errors)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "must compile without ${FLAGS}:\n${errors}")
endif()
execute_process(COMMAND ${compile} ${FLAGS} RESULT_VARIABLE status ERROR_VARIABLE errors)
if(status EQUAL 0)
  message(FATAL_ERROR "must not compile with ${FLAGS}")
endif()
string(FIND "${errors}" "${MESSAGE}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "was rejected without '${MESSAGE}':\n${errors}")
endif()
