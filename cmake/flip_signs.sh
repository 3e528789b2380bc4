#!/usr/bin/env bash
# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
#
# Do the tests notice a wrong sign? In a copy of the tree, the sign of every term of the formulas of
# losses, gradients and the forward parts beside them can be flipped, one in a run: MOE_FLIP=number.
# Every sign that a test reaches is flipped in turn, and at least one test has to fail. By hand; ten
# minutes on two cores. Arguments: numbers of places, to try them alone.
#
# Signs between integers (indices, counts) are left alone, as are those that no test reaches, which
# are printed. Output: every place with its fate, in .build/flip/fates; status 1 if a flipped sign
# went unnoticed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. cmake/setup.sh
moe_need_build nlohmann-json3-dev libgtest-dev
flip=$MOE_BUILD/flip
source=$flip/source
mkdir -p "$source"

cd include/moe
formulas=(core/renormalization.hpp losses/*.hpp routing/{rule_gradient,router_backward,router_logits}.hpp
  routing/{linear_map,scores,gshard_router,noisy_topk_router,sparse_mixer_router}.hpp
  routing/{expert_choice_router,base_router,group_router,modality_router,part_backward,noise}.hpp
  experts/{feed_forward_backward,bank_backward,column_product}.hpp
  experts/{activation,hidden_dropout,zero_cost_experts}.hpp
  layer/{dense_mixture,soft_moe,mixture_of_depths,sparse_moe_backward,run_layer,shared_experts}.hpp
  kernels/generic/{rows,scores,slopes}.inl)
cd ../..
programs=(kernels routing losses experts layer conformance)

cat >"$flip/flip.hpp.new" <<'END'
#pragma once
#if __cplusplus >= 202002L  // CMake tries the compiler with an older standard
#include <cstdio>
#include <cstdlib>
#include <type_traits>
namespace moe_flip {
inline constexpr int most = 4096;
inline int read() { const char* text = std::getenv("MOE_FLIP"); return text ? std::atoi(text) : 0; }
inline const int flipped = read();
/// Places that a run reached, written to the file MOE_FLIP_REACHED when it ends.
struct Reached {
  bool place[most] = {};
  ~Reached() {
    const char* name = std::getenv("MOE_FLIP_REACHED");
    std::FILE* file = name ? std::fopen(name, "w") : nullptr;
    for (int i = 0; file && i < most; ++i) if (place[i]) std::fprintf(file, "%d\n", i);
    if (file) std::fclose(file);
  }
};
inline Reached reached;
template <int id>
[[gnu::always_inline]] inline bool is() {
  if (!__atomic_load_n(&reached.place[id], __ATOMIC_RELAXED))
    __atomic_store_n(&reached.place[id], true, __ATOMIC_RELAXED);
  return flipped == id;
}
template <int id> struct Sign {};
/// A whole number behind a sign, which is left alone until it meets a floating-point one.
template <int id, class I>
struct Whole {
  I value;
  constexpr operator I() const { return value; }
};
template <int id, class T>
[[gnu::always_inline]] constexpr auto operator*(Sign<id>, const T& y) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::is_constant_evaluated() || !is<id>() ? y : -y;
  } else if constexpr (std::is_integral_v<T>) {
    return Whole<id, T>{y};
  } else if constexpr (requires { typename T::Scalar; y.derived(); }) {
    return typename T::Scalar(is<id>() ? -1 : 1) * y;
  } else {
    return y;
  }
}
template <int id, class I, class T>
requires std::is_arithmetic_v<T>
constexpr auto operator*(Whole<id, I> a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::is_constant_evaluated() || !is<id>() ? a.value * b : -(a.value * b);
  } else {
    return Whole<id, decltype(a.value * b)>{a.value * b};
  }
}
template <int id, class I, class T>
requires std::is_arithmetic_v<T>
constexpr auto operator/(Whole<id, I> a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::is_constant_evaluated() || !is<id>() ? a.value / b : -(a.value / b);
  } else {
    return Whole<id, decltype(a.value / b)>{a.value / b};
  }
}
template <int id, class I, class T>
requires std::is_arithmetic_v<T> || std::is_pointer_v<T>
constexpr auto operator+(T a, Whole<id, I> b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::is_constant_evaluated() || !is<id>() ? a + b.value : a - b.value;
  else
    return a + b.value;
}
template <int id, class I, class T>
requires std::is_arithmetic_v<T> || std::is_pointer_v<T>
constexpr auto operator-(T a, Whole<id, I> b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::is_constant_evaluated() || !is<id>() ? a - b.value : a + b.value;
  else
    return a - b.value;
}
template <int id, class I, class T>
requires std::is_arithmetic_v<T> || std::is_pointer_v<T>
constexpr T& operator+=(T& a, Whole<id, I> b) { return a = static_cast<T>(a + b); }
template <int id, class I, class T>
requires std::is_arithmetic_v<T> || std::is_pointer_v<T>
constexpr T& operator-=(T& a, Whole<id, I> b) { return a = static_cast<T>(a - b); }
}  // namespace moe_flip
#endif
END
cmp -s "$flip/flip.hpp.new" "$flip/flip.hpp" || mv "$flip/flip.hpp.new" "$flip/flip.hpp"

# In the kernels, signs are names of functions.
vectors='
template <int id> MOE_ALWAYS_INLINE Vec flip_add(Vec a, Vec b) noexcept {
  return ::moe_flip::is<id>() ? subtract(a, b) : add(a, b);
}
template <int id> MOE_ALWAYS_INLINE Vec flip_subtract(Vec a, Vec b) noexcept {
  return ::moe_flip::is<id>() ? add(a, b) : subtract(a, b);
}
template <int id> MOE_ALWAYS_INLINE Vec flip_multiply_add(Vec a, Vec b, Vec c) noexcept {
  return multiply_add(::moe_flip::is<id>() ? subtract(Vec::zero(), a) : a, b, c);
}
'
# Files that stay as they were keep their times, so that little is compiled again.
printf 'include/moe/%s\n' "${formulas[@]}" >"$flip/formulas"
git ls-files | grep -vxFf "$flip/formulas" |
  xargs cp --parents --preserve=timestamps -t "$source"
(cd "$source" && dirname $(cat "$flip/formulas") | sort -u | xargs mkdir -p)
VECTORS=$vectors perl -e '
  my ($formulas, $to, $places) = @ARGV;
  my $id = 0;
  open(my $list, ">", $places) or die;
  open(my $files, "<", $formulas) or die;
  while (my $file = <$files>) {
    chomp $file;
    open(my $in, "<", $file) or die;
    my $text = "";
    my $line = 0;
    my $place = sub { ++$id; print $list "$id $file:$line: $_[0]\n"; return $id; };
    while (<$in>) {
      ++$line;
      if (/^\s*(#|\/\/)/ or /static_assert|"/) { $text .= $_; next; }
      chomp;
      my $comment = s/(\s*\/\/.*)$// ? $1 : "";
      # A sum that goes on in the next lines, as one.
      while (/ [-+]=( |$)/ and !/;|for \(/ and defined(my $rest = <$in>)) {
        ++$line;
        $rest =~ s/^\s+|\s*(\/\/.*)?$//g;
        $_ .= " $rest";
      }
      (my $shown = $_) =~ s/^\s+//;
      # All of what is added: the whole of `+= a ? b : c;`, the first term of longer ones.
      if (/^(.* )([-+]=) ([^;]*);$/ and ($3 =~ tr|(||) == ($3 =~ tr|)||)) {
        my ($before, $sign, $added) = ($1, $2, $3);
        $_ = "$before$sign ::moe_flip::Sign<" . $place->($shown) . ">() * ($added);";
      }
      s/ ([-+]=?) (?!::moe_flip)(?=[^\s])/" $1 ::moe_flip::Sign<" . $place->($shown) . ">() * "/ge;
      s/(\(|return |= |, |\? |: )-(?=[A-Za-z0-9_(])/"$1::moe_flip::Sign<" . $place->($shown) . ">() * -"/ge;
      s/\b(add|subtract|multiply_add)\(/"flip_$1<" . $place->($shown) . ">("/ge if $file =~ /inl$/;
      $text .= "$_$comment\n";
    }
    $text =~ s/(?=\nMOE_ALWAYS_INLINE)/$ENV{VECTORS}/ if $file =~ /rows\.inl$/;
    if (open(my $old, "<", "$to/$file")) {
      local $/;
      next if <$old> eq $text;
    }
    open(my $out, ">", "$to/$file") or die;
    print $out $text;
  }' "$flip/formulas" "$source" "$flip/places"

cmake -S "$source" -B "$flip/build" -G Ninja -DMOE_BUILD_BENCHMARKS=OFF -DMOE_BUILD_EXAMPLES=OFF \
  -DCMAKE_CXX_FLAGS="-O1 -w -include $flip/flip.hpp" >"$flip/build.log"
targets=()
for program in "${programs[@]}"; do
  [ "$program" = conformance ] && targets+=(conformance) || targets+=("test_$program")
done
cmake --build "$flip/build" --target "${targets[@]}" >>"$flip/build.log" ||
  moe_stop "building failed: $flip/build.log"

# try PROGRAM : runs its tests up to the first that fails. A loop without end fails, too.
try() {
  local command=("$flip/build/tests/test_$1" --gtest_fail_fast --gtest_brief=1)
  [ "$1" != conformance ] || command=("$flip/build/tests/conformance")
  timeout 600 "${command[@]}" >/dev/null 2>&1
}
export OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2
for program in "${programs[@]}"; do
  MOE_FLIP_REACHED=$flip/reached.$program try "$program" ||
    moe_stop "$program fails although no sign is flipped"
done

# fate PLACE : prints which program noticed.
fate() {
  local program reached=0 number=${1%% *}
  for program in "${programs[@]}"; do
    grep -qx "$number" "$flip/reached.$program" || continue
    reached=1
    if ! MOE_FLIP=$number try "$program"; then
      echo "noticed by $program: $1"
      return
    fi
  done
  [ $reached = 1 ] && echo "UNNOTICED: $1" || echo "not reached: $1"
}
export -f try fate
export flip
export programs_text="${programs[*]}"
pattern=.
[ $# = 0 ] || pattern="^($(IFS='|'; echo "$*")) "
grep -E "$pattern" "$flip/places" | tr '\n' '\0' |
  xargs -0 -P "$(nproc)" -n 1 bash -c 'read -ra programs <<<"$programs_text"; fate "$1"' fate | tee "$flip/fates"
echo
cut -d: -f1 "$flip/fates" | sort | uniq -c
! grep -q '^UNNOTICED' "$flip/fates"
