#!/usr/bin/env bash
# Starts the program with nothing but what the runtime image has: the libraries of distroless/cc-debian12,
# no shell, user 65532, a file system that cannot be written. Without root, or elsewhere than on Linux, it
# compares only the libraries that the program asks for with those of the image.
# Usage: deploy/check_runtime.sh SCONCE
set -euo pipefail
sconce=$(realpath "$1")

# What of the image a program can be linked to: glibc 2.36, and the runtimes of C++ and of OpenMP by
# GCC 12. It has OpenSSL 3 too, of which nothing here may make use.
LIBRARIES='(ld-linux-(x86-64|aarch64)|libc|libm|libdl|libpthread|librt|libresolv|libgcc_s|libstdc\+\+|libgomp)\.so'
GLIBC=2.36

[[ $(uname -s) == Linux ]] || { echo "runtime image not tried: this is not Linux"; exit; }
needed=$(readelf -d "$sconce" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
foreign=$(grep -vE "^$LIBRARIES\.[0-9.]+\$" <<<"$needed" || true)
if [[ -n $foreign ]]; then
  echo "check_runtime.sh: $sconce needs $foreign, which the runtime image does not have" >&2
  exit 1
fi
newest=$(objdump -T "$sconce" | grep -oE 'GLIBC_2\.[0-9]+' | sort -Vu | tail -n 1)
echo "libraries:" $needed "- newest symbols: ${newest#GLIBC_}, the image has $GLIBC"
if [[ $(printf '%s\n' "$GLIBC" "${newest#GLIBC_}" | sort -V | tail -n 1) != "$GLIBC" ]]; then
  echo "built here against a newer glibc than the image's: not this file, one built by the Dockerfile runs there"
fi

if [[ $(id -u) != 0 ]] || ! unshare --mount --pid --fork true 2>/dev/null; then
  echo "runtime image not tried: no right to mount here"
  exit
fi
root=$(mktemp -d)
log=$(mktemp)
trap 'rm -rf "$root" "$log"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{proc,tmp,usr/local/bin}
cp "$sconce" "$root/usr/local/bin/sconce"
# As `ldd` found them: a path after `=>`, or the loader's own.
ldd "$sconce" | grep -oE '/[^ ]+' | while read -r library; do
  install -D "$library" "$root$library"
done
cat >"$root/config.toml" <<'TOML'
[server]
listen = "127.0.0.1:0"
withdrawal = "0s"
[models]
sim = "sim:"
TOML

# All in one namespace, in which the folder is mounted over itself, read-only, with a /proc.
unshare --mount --pid --fork bash -euo pipefail -c '
  root=$1 log=$2
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount -o remount,bind,ro "$root"
  image=(env -i "$(type -P chroot)" --userspec=65532:65532 "$root" /usr/local/bin/sconce)
  "${image[@]}" --version
  "${image[@]}" config check --config /config.toml
  coproc exec "${image[@]}" serve --config /config.toml 2>"$log"
  read -r -u "${COPROC[0]}" _ _ address
  "${image[@]}" health --wait --timeout 60s --service readiness --server "$address"
  "${image[@]}" complete --server "$address" --max-tokens 8 --temperature 0 "A sconce holds" >/dev/null 2>&1
  server=$COPROC_PID
  kill -TERM "$server"
  wait "$server"
' check "$root" "$log" || { cat "$log" >&2; exit 1; }
echo "it starts, answers and drains with the libraries of the runtime image, as user 65532, on a read-only file system"
