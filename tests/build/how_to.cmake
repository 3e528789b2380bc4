# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Follows the README's how-to literally: takes the code blocks that name a file, puts them into a
# copy of the headers, adds the header to the umbrella, compiles the test and runs it.
#
# README, INCLUDE, SUPPORT (a folder of test helpers), WORK, CXX, EIGEN, FLAGS
file(READ ${README} readme)
string(FIND "${readme}" "## Adding a rule, a router or an expert" begin)
if(begin EQUAL -1)
  message(FATAL_ERROR "the README has no how-to")
endif()
string(SUBSTRING "${readme}" ${begin} -1 readme)
file(REMOVE_RECURSE ${WORK})
file(COPY ${INCLUDE}/ DESTINATION ${WORK}/include)
file(COPY ${SUPPORT} DESTINATION ${WORK}/tests)
string(FIND "${readme}" "```cpp\n" at)
math(EXPR at "${at} + 7")
string(SUBSTRING "${readme}" ${at} -1 rest)
string(FIND "${rest}" "\n```" end)
string(SUBSTRING "${rest}" 0 ${end} rule)
foreach(path include/moe/routing/random_router.hpp tests/routing/random_router_test.cpp)
  string(FIND "${readme}" "`${path}`" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "the how-to does not name ${path}")
  endif()
  string(SUBSTRING "${readme}" ${at} -1 rest)
  string(FIND "${rest}" "```cpp\n" at)
  math(EXPR at "${at} + 7")
  string(SUBSTRING "${rest}" ${at} -1 rest)
  string(FIND "${rest}" "\n```" end)
  string(SUBSTRING "${rest}" 0 ${end} code)
  file(WRITE ${WORK}/${path} "${code}\n")
endforeach()
set(next "#include \"moe/routing/routing_rule.hpp\"\n")
file(READ ${WORK}/include/moe/moe.hpp umbrella)
string(REPLACE "${next}" "#include \"moe/routing/random_router.hpp\"\n${next}" umbrella "${umbrella}")
file(WRITE ${WORK}/include/moe/moe.hpp "${umbrella}")
# The rule stands beside the test, in which a router takes it.
file(APPEND ${WORK}/tests/routing/random_router_test.cpp "
${rule}

TEST(Rule, WorksInARouter) {
  const moe::RouterConfig config{.d_model = 2, .num_experts = 5, .top_k = 4, .rule = my_rule};
  moe::RouterWeights<double> weights{.weight = moe::Matrix<double>::Zero(5, 2)};
  weights.weight.col(0) << -3, 0, 2, -1, 1;  // Sigmoid above 0.44 are those of 0, 2 and 1.
  moe::Routing<double> routing;
  moe::Matrix<double> x(1, 2);
  x << 1, 0;
  moe::TopKRouter<double>(config, weights).route(x, {}, routing);
  EXPECT_EQ(routing.experts(0, 0), 2);
  EXPECT_EQ(routing.experts(0, 2), 1);
  EXPECT_EQ(routing.experts(0, 3), moe::no_expert);
  EXPECT_NEAR(routing.weights.sum(), 1, 1e-15);
}
")

set(includes -I${WORK}/include -I${WORK}/tests)
foreach(folder IN LISTS EIGEN)
  list(APPEND includes -isystem ${folder})
endforeach()
separate_arguments(flags UNIX_COMMAND "${FLAGS}")
execute_process(COMMAND ${CXX} -std=c++20 ${flags} -Wall -Wextra -Werror ${includes}
                        ${WORK}/tests/routing/random_router_test.cpp -o ${WORK}/random_router_test
                        -lgtest -lgtest_main -pthread
                RESULT_VARIABLE status ERROR_VARIABLE errors)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "the how-to does not compile:\n${errors}")
endif()
execute_process(COMMAND ${WORK}/random_router_test RESULT_VARIABLE status OUTPUT_VARIABLE output)
message("${output}")
if(NOT status EQUAL 0 OR NOT output MATCHES "PASSED  . 4 tests")
  message(FATAL_ERROR "the how-to's test fails")
endif()
