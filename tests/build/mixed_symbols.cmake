# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Fails where objects of different flags define the same function of the library: the linker would
# keep one of them for all, which may be one that not every machine runs.
# Arguments: OBJECTS, NM.
cmake_minimum_required(VERSION 3.24)
set(seen "")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND ${NM} --defined-only ${object} OUTPUT_VARIABLE text
                  COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL " [VWu] [A-Za-z0-9_.$]*3moe[A-Za-z0-9_.$]*" symbols "${text}")
  list(REMOVE_DUPLICATES symbols)
  foreach(symbol IN LISTS symbols)
    if(symbol IN_LIST seen)
      message(FATAL_ERROR "${object} shares${symbol}")
    endif()
  endforeach()
  list(APPEND seen ${symbols})
endforeach()
list(LENGTH seen count)
if(count LESS 100)
  message(FATAL_ERROR "only ${count} functions in all: are these the right objects?")
endif()
message("${count} functions, none in two objects")
