# SPDX-FileCopyrightText: The moe authors
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# What the run scripts share: packages, configuring, building. Sourced, not run.
# Everything here speaks on stderr, so that a script's stdout is its program's alone.

MOE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
MOE_BUILD=$MOE_ROOT/.build

# moe_need PACKAGE... : installs the Debian packages that are missing. Root and sudo may do so; else
# the line to run is printed and the script stops. On a system without dpkg, CMake finds what it can.
moe_need() {
  command -v dpkg-query >/dev/null || return 0
  local package missing=()
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  local install=(apt-get install -y --no-install-recommends "${missing[@]}") sudo=()
  if [ "$(id -u)" != 0 ]; then
    # Without a terminal nobody could type a password.
    if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
      sudo=(sudo)
    else
      moe_stop "missing packages; run: sudo apt-get update && sudo ${install[*]}"
    fi
  fi
  echo "moe: installing ${missing[*]}" >&2
  { "${sudo[@]}" apt-get update -q &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive "${install[@]}"; } </dev/null >&2 ||
    moe_stop "installing packages failed; run: sudo apt-get update && sudo ${install[*]}"
}

# moe_need_build PACKAGE... : the tools and libraries of every build, and PACKAGE... .
moe_need_build() {
  local tools=()
  command -v cmake >/dev/null || tools+=(cmake)
  command -v ninja >/dev/null || tools+=(ninja-build)
  if ! command -v "${CXX:-g++}" >/dev/null || [ "${CXX:-g++}" = clang++ ]; then
    case ${CXX:-g++} in
      g++) tools+=(g++) ;;
      clang++) tools+=(clang libomp-dev) ;;
      *) moe_stop "there is no compiler '$CXX'" ;;
    esac
  fi
  moe_need "${tools[@]}" libeigen3-dev "$@"
}

# moe_build NAME TARGETS CMAKE_ARGUMENT... : configures .build/NAME once (again when the arguments
# change) and builds the targets, a list separated by blanks.
moe_build() {
  local dir=$MOE_BUILD/$1 targets=$2
  shift 2
  local flags=${CXXFLAGS:-}  # which CMake reads when it configures
  local arguments=(-DCMAKE_CXX_COMPILER="${CXX:-g++}" "$@")
  local key="$MOE_ROOT ${arguments[*]} $flags"  # of a copied checkout, the builds are another's
  if [ ! -e "$dir/build.ninja" ] || [ "$(cat "$dir/moe-arguments" 2>/dev/null)" != "$key" ]; then
    rm -rf "$dir"  # Given another compiler, CMake would forget the other arguments.
    cmake -S "$MOE_ROOT" -B "$dir" -G Ninja "${arguments[@]}" >&2 || moe_stop "configuring failed"
    printf '%s\n' "$key" >"$dir/moe-arguments"
  fi
  # shellcheck disable=SC2086
  cmake --build "$dir" --target $targets >&2 || moe_stop "building failed"
}

moe_stop() {
  echo "moe: $1" >&2
  exit 1
}
