#!/usr/bin/env bash
# Build the Dockerfile where no registry of images can be reached: its base is made here, of Debian's packages.
#   sudo tools/rehearse_image.sh FOLDER [further arguments of buildah build]      # apt install buildah crun debootstrap
# The base is Debian 13 with Debian's Python instead of the pinned python image, so this proves every COPY and RUN, the pins, the
# user and the commands, and not the pinned base itself. It takes about 20 GB in FOLDER, and needs no GPU.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(mkdir -p "$1" && cd "$1" && pwd)"

if [ ! -e "$folder/base.tar" ]; then
  debootstrap --variant=minbase --include=ca-certificates,python3-venv trixie "$folder/base" http://deb.debian.org/debian
  chroot "$folder/base" python3 -m venv /usr/local   # python and pip where the pinned image has its own
  tar --create --directory "$folder/base" --file "$folder/base.tar" .
  rm -r "$folder/base"
fi
printf 'FROM scratch\nADD base.tar /\n' > "$folder/Base.dockerfile"

# Nothing of the machine's own images is touched. STORAGE_DRIVER=vfs where overlay is refused, inside a container for instance.
store=(--root "$folder/store" --runroot "$folder/run" --storage-driver "${STORAGE_DRIVER:-overlay}")
buildah "${store[@]}" build --isolation chroot --file "$folder/Base.dockerfile" --tag localhost/base "$folder"
for target in rewards train; do
  buildah "${store[@]}" build --isolation chroot --format docker --layers --build-arg BASE=localhost/base --target "$target" \
    --tag "localhost/customized-grpo:$target" "${@:2}" "$root"
done
buildah "${store[@]}" images
