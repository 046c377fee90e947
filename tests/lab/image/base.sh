#!/bin/bash
# base.sh OUT: the slow half of the lab's images, from Debian packages.
#
# Writes into OUT:
#   root.squashfs            a lab host's root file system
#   host/{vmlinuz,modules/}  its kernel, and the modules that it gets
#   guest/{bzImage,vmlinux,modules/,redis/,busybox}
#                            what goes into the guest that runs inside a host
#
# tests/lab/build runs it in namespaces of its own: what it mounts or starts
# goes away with it, also when it is interrupted.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$1
suite=bookworm
mirror=${REPRISE_DEBIAN_MIRROR:-http://deb.debian.org/debian}
root=$out/.root

list() { grep -v '^#' "$1" | tr '\n' ' '; }

make_root() {
    debootstrap --variant=minbase "$suite" "$root" "$mirror"
    # No daemon starts while packages are configured.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    printf 'path-exclude /usr/share/%s/*\n' doc man locale info > "$root/etc/dpkg/dpkg.cfg.d/lab"
    mount -t proc proc "$root/proc"
    in_root apt-get -qq update
    # shellcheck disable=SC2046
    in_root apt-get -qq -y --no-install-recommends install $(list "$here/packages.txt")
}

in_root() {
    DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" "$@"
}

# kernel_package META: the versioned package that a kernel's meta package pulls in.
kernel_package() {
    in_root apt-cache depends "$1" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1
}

# unpack_kernel META DEST IMAGE MODULES...: DEST/IMAGE and DEST/modules/ with MODULES and what they need.
unpack_kernel() {
    local package version dest=$2 tree=$out/.kernel-$1
    package=$(kernel_package "$1")
    version=${package#linux-image-}
    in_root sh -c "cd /var/cache/apt && apt-get -qq -o APT::Sandbox::User=root download $package"
    dpkg-deb -x "$root/var/cache/apt/$package"_*.deb "$tree"
    rm "$root/var/cache/apt/$package"_*.deb
    mkdir -p "$dest"
    cp "$tree/boot/vmlinuz-$version" "$dest/$3"
    echo "$version" > "$dest/version"
    shift 3
    copy_modules "$tree" "$version" "$dest/modules" "$@"
    rm -rf "$tree"
}

copy_modules() {
    local tree=$1 version=$2 dest=$3 wanted files
    shift 3
    mkdir -p "$root/mnt/tree" "$dest/lib/modules/$version"
    mount --bind "$tree" "$root/mnt/tree"
    in_root depmod -b /mnt/tree "$version"
    wanted=$(for module; do
        in_root modprobe -d /mnt/tree -S "$version" --show-depends "$module"
    done)
    umount "$root/mnt/tree"
    files=$(sed -n 's#^insmod /mnt/tree/\([^ ]*\).*#\1#p' <<< "$wanted" | sort -u)
    tar -C "$tree" -cf - $files | tar -C "$dest" -xf -
    cp "$tree/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$dest/lib/modules/$version/"
    mkdir -p "$root/mnt/mods"
    mount --bind "$dest" "$root/mnt/mods"
    in_root depmod -b /mnt/mods "$version"
    umount "$root/mnt/mods"
}

# The guest's kernel as an ELF with its PVH note: the payload of the bzImage.
# Offset and length of the payload: linux Documentation/x86/boot.rst, payload_offset.
extract_vmlinux() {
    local image=$1 sectors offset length
    sectors=$(od -An -tu1 -j 497 -N 1 "$image")
    offset=$(od -An -tu4 -j 584 -N 4 "$image")
    length=$(od -An -tu4 -j 588 -N 4 "$image")
    # The last four bytes are the unpacked size, not part of the (legacy lz4) stream.
    length=$((length - 4))
    head -c $(((sectors + 1) * 512 + offset + length)) "$image" | tail -c "$length" | lz4 -dc > "$2"
}

# with_libraries DEST PROGRAM...: programs of the root with the libraries that they load.
with_libraries() {
    local dest=$1 files
    shift
    files=$({ printf '%s\n' "$@"; in_root ldd "$@" | grep -o '/[^ :]* (' | tr -d ' ('; } | sort -u)
    mkdir -p "$dest"
    # shellcheck disable=SC2086
    tar -C "$root" -chf - ${files//\///} | tar -C "$dest" -xf -
}

make_root
# shellcheck disable=SC2046
unpack_kernel linux-image-amd64 "$out/host" vmlinuz $(list "$here/modules-host.txt")
# shellcheck disable=SC2046
unpack_kernel linux-image-cloud-amd64 "$out/guest" bzImage $(list "$here/modules-guest.txt")
extract_vmlinux "$out/guest/bzImage" "$out/guest/vmlinux"
with_libraries "$out/guest/redis" /usr/bin/redis-server /usr/bin/redis-cli /usr/bin/redis-benchmark
cp "$root/bin/busybox" "$out/guest/busybox"

cp -a "$out/host/modules/lib/modules" "$root/lib/"
umount "$root/proc"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/cache/debconf/* \
    "$root"/usr/share/{doc,man,locale,info} "$root"/mnt/{tree,mods}
mksquashfs "$root" "$out/root.squashfs" -comp zstd -Xcompression-level 3 -no-progress -quiet
rm -rf "$root"
