#!/usr/bin/env bash
# vm.sh KERNEL [--root DIR] [--modules NAME,...] [--timeout S] [COMMAND...]
#
# Boots a Debian kernel under QEMU's software emulation with a busybox initramfs that holds spile, its libraries and what
# --root adds, runs COMMAND in it and returns its output and exit status. KERNEL is 6.1, 6.12, newest (of Debian unstable) or a file.
#
# Exit status: COMMAND's, or 77 with a reason on stderr when the kernel package cannot be fetched here (tests then skip), or
# 124 when the machine did not finish in time.
#
# Serial lines: ttyS0 kernel log (to $cache/console.*), ttyS1 the command's output, ttyS2 its exit status.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
cache=${SPILE_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/spile/vm}
spile=${SPILE_BINARY:-$top/build/release/spile}
timeout_s=${SPILE_VM_TIMEOUT:-300}
extra_root=
modules=

skip() { echo "vm: $*" >&2; exit 77; }
die() { echo "vm: $*" >&2; exit 2; }

[ $# -ge 1 ] || die "usage: vm.sh KERNEL [--root DIR] [--modules NAME,...] [--timeout S] [COMMAND...]"
kernel=$1
shift
while [ $# -gt 0 ]; do
  case $1 in
    --root) extra_root=$2; shift 2 ;;
    --modules) modules=$2; shift 2 ;;
    --timeout) timeout_s=$2; shift 2 ;;
    --) shift; break ;;
    *) break ;;
  esac
done
[ $# -gt 0 ] || set -- uname -a

for tool in qemu-system-x86_64 cpio gzip dpkg-deb; do
  command -v "$tool" >/dev/null || skip "$tool is not installed (apt-get install qemu-system-x86 cpio busybox-static)"
done
busybox=$(command -v busybox || true)
[ -n "$busybox" ] || skip "busybox is not installed (apt-get install busybox-static)"
mkdir -p "$cache"

# ---- the kernel: downloaded by apt from a suite of its own, unpacked, never installed -------------------------------

suite_of() {
  case $1 in
    6.1) echo bookworm ;;
    6.12) echo bookworm-backports trixie ;;
    newest) echo sid trixie-backports ;;
    *) return 1 ;;
  esac
}

# The start of the package's version.
version_of() {
  case $1 in
    newest) echo '[0-9]+\.[0-9]+' ;;
    *) echo "${1//./\\.}\\.[0-9]" ;;
  esac
}

# The mirror that this machine's apt already uses.
mirror() {
  grep -rhsE '^(URIs:|deb )' /etc/apt/sources.list /etc/apt/sources.list.d/ |
    sed -E 's/^URIs: *//; s/^deb +(\[[^]]*\] +)?//' | awk '{print $1}' | grep -E '/debian/?$' | head -n 1
}

fetch_from() { # version suite dir
  local version=$1 suite=$2 dir=$3 apt=$3/apt uri package
  uri=$(mirror)
  [ -n "$uri" ] || return 1
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  echo "deb $uri $suite main" >"$apt/sources.list"
  local options=(-o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$apt/lists"
    -o "Dir::Cache::archives=$apt/archives" -o "Dir::Cache::pkgcache=" -o "Dir::Cache::srcpkgcache=" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::Retries=2)
  apt-get "${options[@]}" -qq update >"$dir/apt.log" 2>&1 || return 1
  package=$(apt-cache "${options[@]}" search --names-only "^linux-image-$(version_of "$version").*cloud-amd64$" |
    awk '{print $1}' | grep -v -- '-dbg$' | grep -v unsigned | sort -V | tail -n 1)
  [ -n "$package" ] || return 1
  # Newer packages of this name have no files of their own but need two others that do.
  local packages=("$package") part deb
  for part in binary modules; do
    part=${package/linux-image-/linux-$part-}
    if [ -n "$(apt-cache "${options[@]}" pkgnames "$part")" ]; then packages+=("$part"); fi
  done
  (cd "$dir" && apt-get "${options[@]}" -qq download "${packages[@]}" >>apt.log 2>&1) || return 1
  for deb in "$dir"/linux-*.deb; do dpkg-deb -x "$deb" "$dir/unpacked" || return 1; done
  rm -f "$dir"/linux-*.deb
  rm -rf "$apt"
}

# Newer packages have it beside the modules.
find_image() { # dir
  { compgen -G "$1/unpacked/boot/vmlinuz-*" || compgen -G "$1/unpacked/usr/lib/modules/*/vmlinuz" || true; } | head -n 1
}

kernel_image() {
  if [ -f "$kernel" ]; then
    echo "$kernel"
    return
  fi
  local dir=$cache/kernel-$kernel suites suite
  suites=$(suite_of "$kernel") || die "unknown kernel '$kernel': 6.1, 6.12, newest or a file"
  if [ -z "$(find_image "$dir")" ]; then
    exec 9>"$cache/lock-$kernel"
    flock 9
    if [ -z "$(find_image "$dir")" ]; then
      rm -rf "$dir"
      mkdir -p "$dir"
      for suite in $suites; do
        fetch_from "$kernel" "$suite" "$dir" && break
      done
    fi
    flock -u 9
  fi
  find_image "$dir"
}

image=$(kernel_image)
[ -n "$image" ] || skip "no Debian package of kernel $kernel could be fetched (see $cache/kernel-$kernel/apt.log)"

# ---- the initramfs: busybox, spile, shared libraries, test programs ------------------------------------------------

copy_with_libraries() { # file root: the file at its own path below root, and every library it names
  local file=$1 root=$2 library
  install -D "$(readlink -f "$file")" "$root$file"
  { ldd "$file" 2>/dev/null || true; } | { grep -oE '/[^ )]+' || true; } | while read -r library; do
    [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
  done
}

stamp=$({ stat -Lc '%Y-%s' "$spile" "$busybox" "$here/init" "$here/vm.sh" 2>/dev/null || true; } | tr '\n' '_' | md5sum | cut -c1-16)
base=$cache/base-$stamp.cpio.gz
if [ ! -f "$base" ] || [ -n "$extra_root" ]; then
  root=$(mktemp -d "$cache/root.XXXXXX")
  trap 'rm -rf "$root"' EXIT
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,root,etc,usr/bin,lib64}
  cp "$busybox" "$root/bin/busybox"
  cp "$here/init" "$root/init"
  chmod +x "$root/init" "$root/bin/busybox"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  printf 'tcp\t6\tTCP\n' >"$root/etc/protocols"
  if [ -x "$spile" ]; then
    copy_with_libraries "$spile" "$root"
    mv "$root$spile" "$root/bin/spile"
  fi
  for library in /lib/x86_64-linux-gnu/libc.so.6; do
    [ -e "$root$library" ] || install -D "$(readlink -f $library)" "$root$library"
  done
  if [ -n "$extra_root" ]; then
    cp -a "$extra_root/." "$root/"
    find "$extra_root" -type f -perm -u+x | while read -r program; do
      { ldd "$program" 2>/dev/null || true; } | { grep -oE '/[^ )]+' || true; } | while read -r library; do
        [ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
      done
    done
    base=$cache/base-$stamp-$$.cpio.gz
  fi
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$base.$$"
  mv "$base.$$" "$base"
  rm -rf "$root"
  trap - EXIT
  # Old images of earlier builds.
  [ -n "$extra_root" ] || find "$cache" -maxdepth 1 -name 'base-*.cpio.gz' ! -name "$(basename "$base")" -mmin +60 -delete
fi

# ---- run --------------------------------------------------------------------------------------------------------------

run=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$run"; [ -z "$extra_root" ] || rm -f "$base"' EXIT
mkdir "$run/root"
{ printf 'exec'; printf ' %q' "$@"; echo; } >"$run/root/command"
# The kernel's own modules, as /modules/NAME.ko.
for module in ${modules//,/ }; do
  file=$(find "$cache/kernel-$kernel/unpacked" -name "$module.ko*" -print -quit)
  [ -n "$file" ] || die "the package of kernel $kernel has no module $module"
  mkdir -p "$run/root/modules"
  case $file in
    *.xz) xz -dc "$file" >"$run/root/modules/$module.ko" ;;
    *) cp "$file" "$run/root/modules/$module.ko" ;;
  esac
done
(cd "$run/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$run/command.cpio.gz"
cat "$base" "$run/command.cpio.gz" >"$run/initrd"

status=0
# Without cmpxchg16b: QEMU 7.2 emulates it so that the allocator of kernel 6.12 now and then takes a double fault.
# One CPU: the emulator runs several as threads, and one may go on in code that another has just taken out (a kprobe's
# trampoline): the guest then jumps to 0. An oops ends the machine at once instead of leaving it to the time limit.
# no_timer_check: on a busy machine the emulated timer is late, which a kernel else takes for a broken one and panics.
timeout -k 5 "$timeout_s" qemu-system-x86_64 -accel tcg -cpu max,cx16=off -smp 1 -m 1024 -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$image" -initrd "$run/initrd" \
  -append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off no_timer_check rdinit=/init 8250.nr_uarts=4" \
  -serial "file:$run/console" -serial "file:$run/out" -serial "file:$run/status" </dev/null >"$run/qemu.log" 2>&1 || status=$?

cat "$run/out" 2>/dev/null || true
if [ -s "$run/status" ]; then
  exit "$(tr -dc 0-9 <"$run/status")"
fi
cp "$run/console" "$cache/console.last" 2>/dev/null || true
tail -n 20 "$run/console" >&2 || true
cat "$run/qemu.log" >&2
echo "vm: the machine ended without a status (qemu: $status); its console is in $cache/console.last" >&2
exit 124
