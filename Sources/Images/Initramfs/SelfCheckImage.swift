// An initramfs whose init checks the machine it runs on, for boot tests: an unmodified Debian kernel, busybox, the
// kernel's own modules, no disk needed.
//
// The guest prints one line a check, then powers off:
//
//   SELFCHECK BEGIN 6.1.0-…-cloud-amd64
//   SELFCHECK disk ok 3f5c…
//   SELFCHECK net FAIL no lease
//   SELFCHECK DONE 9 ok 1 failed
//
// Words on the kernel's command line steer it:
//
//   selfcheck.only=net,disk   run these checks alone
//   selfcheck.skip=net        leave these out
//   selfcheck.now=SECONDS     the host's Unix time at the start: the guest's may be at most slack away from it
//   selfcheck.slack=SECONDS   (120)
//   selfcheck.url=URL         fetch this and print its SHA-256
//   selfcheck.fill=MIB        fill so much memory ("SELFCHECK filled"), free it ("SELFCHECK freed"), wait a little
//   selfcheck.end=reboot      reset instead of powering off; `halt`, `panic` and `sleep` likewise
//   selfcheck.end=count       go on for ever: "COUNT number uptime processes processors MiB", as long as 16 MiB of memory
//                             and, if there is one, the disk hold what was written to them; new processors are brought up
internal import Foundation

/// A kernel with its modules, unpacked from a Debian package.
public struct DebianKernel: Sendable {
    /// The bzImage.
    public let image: String
    /// The folder below which `lib/modules` is.
    public let root: String

    /// Which of Debian's kernels.
    public enum Flavor: String, Sendable, CaseIterable {
        /// linux-image-cloud-amd64: what virtual machines need.
        case cloud
        /// linux-image-amd64: what any PC needs.
        case standard
    }

    /// The kernel that `make kernels` has fetched.
    public static func fetched(_ flavor: Flavor) throws(ImageError) -> DebianKernel {
        let environment = ProcessInfo.processInfo.environment
        let cache =
            environment["XDG_CACHE_HOME"].flatMap { $0.isEmpty ? nil : $0 }
            ?? (environment["HOME"] ?? NSHomeDirectory()) + "/.cache"
        let root = "\(cache)/roost/kernels/\(flavor.rawValue)"
        guard FileManager.default.fileExists(atPath: root + "/vmlinuz") else {
            throw ImageError(.notFound, "no \(flavor.rawValue) kernel in \(root); run `make kernels`")
        }
        return DebianKernel(image: root + "/vmlinuz", root: root)
    }
}

/// Builds the initramfs that checks its machine.
public enum SelfCheckImage {
    /// Modules the checks use; those built into the kernel are left out.
    static let modules = [
        "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_console", "virtio_balloon", "crc32c_generic",
        "crc32c_intel", "ext4",
    ]

    /// The uncompressed cpio archive for a kernel, with more modules to load.
    public static func initramfs(for kernel: DebianKernel, with more: [String] = []) throws(ImageError) -> [UInt8] {
        var archive = try EarlyUserSpace.archive(modules: modules + more, root: kernel.root)
        archive.addFile("init", text: initScript, mode: 0o755)
        archive.addFile("etc/udhcpc.script", text: EarlyUserSpace.dhcpScript, mode: 0o755)
        return archive.serialized()
    }

    static let initScript = #"""
        #!/bin/sh
        # Checks the machine it runs on; see SelfCheckImage.swift.
        export PATH=/bin
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t devtmpfs dev /dev 2>/dev/null
        mkdir -p /tmp /run /mnt
        mount -t tmpfs tmp /tmp
        echo 4 >/proc/sys/kernel/printk

        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^selfcheck\.$1=//p" | tail -n 1; }
        only=$(word only) skip=$(word skip) passed=0 failed=0
        echo "SELFCHECK BEGIN $(uname -r)"

        # check NAME: runs check_NAME, whose output (one line) is the detail.
        check() {
            case ",$skip," in *",$1,"*) return;; esac
            [ -z "$only" ] || case ",$only," in *",$1,"*) ;; *) return;; esac
            if detail=$(check_$1 2>/tmp/errors); then
                passed=$((passed + 1)); echo "SELFCHECK $1 ok $detail"
            else
                failed=$((failed + 1)); echo "SELFCHECK $1 FAIL $detail $(tail -n 1 /tmp/errors)"
            fi
        }

        check_modules() {
            while read module; do
                insmod /modules/$module.ko || { case $module in crc32c_intel) ;; *) echo "$module"; return 1;; esac; }
            done </modules/order
            wc -l </modules/order
        }
        check_cpu() {
            grep -qw lm /proc/cpuinfo && grep -qw sse2 /proc/cpuinfo || { echo "flags"; return 1; }
            echo "$(grep -c ^processor /proc/cpuinfo) of $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1)"
        }
        check_memory() {
            dd if=/dev/zero of=/tmp/zeros bs=1M count=16 2>/dev/null || return 1
            sum=$(sha256sum </tmp/zeros); rm /tmp/zeros
            [ "${sum%% *}" = 080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e ] || { echo "$sum"; return 1; }
            sed -n 's/^MemTotal: *//p' /proc/meminfo
        }
        check_clocksource() { cat /sys/devices/system/clocksource/clocksource0/current_clocksource; }
        check_clock() {
            now=$(date +%s) want=$(word now) slack=$(word slack)
            [ -z "$want" ] || [ $((now - want)) -ge -5 -a $((now - want)) -le ${slack:-120} ] || {
                echo "$now, not near $want"; return 1; }
            [ "$now" -gt 1700000000 ] || { echo "$now"; return 1; }
            echo "$now"
        }
        check_timer() {
            read before rest </proc/uptime; sleep 1; read after rest </proc/uptime
            took=$(echo "$before $after" | awk '{ printf "%d", ($2 - $1) * 1000 }')
            [ "$took" -ge 900 ] && [ "$took" -le 4000 ] || { echo "a second took $took ms"; return 1; }
            echo "$took ms"
        }
        check_interrupts() {
            first=$(awk '/^ *LOC:/ { print $2 }' /proc/interrupts); sleep 0.3
            second=$(awk '/^ *LOC:/ { print $2 }' /proc/interrupts)
            [ "$second" -gt "$first" ] || { echo "timer: $first, then $second"; return 1; }
            echo "$second"
        }
        check_rng() {
            grep -q virtio /sys/class/misc/hw_random/rng_current || { echo "no virtio_rng"; return 1; }
            sum=$(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | sha256sum)
            [ "${sum%% *}" != f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b ] || return 1
            echo "${sum%% *}"
        }
        check_disk() {
            [ -b /dev/vda ] || { echo "no /dev/vda"; return 1; }
            dd if=/dev/urandom of=/tmp/block bs=64k count=16 2>/dev/null || return 1
            sum=$(sha256sum </tmp/block)
            dd if=/tmp/block of=/dev/vda bs=64k seek=16 conv=fsync 2>/tmp/dd || { tail -n 1 /tmp/dd; return 1; }
            sync; echo 3 >/proc/sys/vm/drop_caches
            again=$(dd if=/dev/vda bs=64k skip=16 count=16 2>/dev/null | sha256sum)
            [ "$sum" = "$again" ] || { echo "wrote $sum, read $again"; return 1; }
            echo "${sum%% *}"
        }
        check_filesystem() {
            [ -b /dev/vda ] || { echo "no /dev/vda"; return 1; }
            mke2fs -q /dev/vda >/dev/null || { echo "mke2fs"; return 1; }
            mount -t ext4 /dev/vda /mnt || { echo "mount"; return 1; }
            for file in 1 2 3 4 5 6 7 8; do cat /bin/busybox >/mnt/$file || { echo "write"; return 1; }; done
            umount /mnt; echo 3 >/proc/sys/vm/drop_caches
            mount -t ext4 -o ro /dev/vda /mnt || { echo "mount again"; return 1; }
            for file in 1 2 3 4 5 6 7 8; do cmp /bin/busybox /mnt/$file || { echo "compare"; return 1; }; done
            umount /mnt
        }
        check_net() {
            ip link set lo up; ip link set eth0 up || { echo "no eth0"; return 1; }
            udhcpc -q -n -t 5 -T 2 -i eth0 -s /etc/udhcpc.script >/tmp/dhcp 2>&1 || { echo "no lease"; return 1; }
            gateway=$(ip route | awk '/^default/ { print $3 }')
            ping -c 1 -W 5 "$gateway" >/tmp/ping 2>&1 || { echo "no answer from $gateway"; return 1; }
            ip -4 addr show dev eth0 | awk '/inet / { print $2 }'
        }
        check_url() {
            url=$(word url); [ -n "$url" ] || return 0
            wget -q -T 20 -O /tmp/fetched "$url" || { echo "cannot fetch $url"; return 1; }
            sum=$(sha256sum </tmp/fetched); echo "${sum%% *}"
        }

        check_fill() {
            count=$(word fill); [ -n "$count" ] || return 0
            dd if=/dev/urandom of=/tmp/fill bs=1M count="$count" 2>/dev/null || { echo "fill"; return 1; }
            echo "SELFCHECK filled" >/dev/console; sleep 2
            rm /tmp/fill; sync; echo 3 >/proc/sys/vm/drop_caches
            echo "SELFCHECK freed" >/dev/console; sleep 15
        }

        count() {
            dd if=/dev/urandom of=/tmp/pattern bs=1M count=16 2>/dev/null
            pattern=$(md5sum </tmp/pattern) number=0
            [ -b /dev/vda ] && dd if=/tmp/pattern of=/dev/vda bs=1M 2>/dev/null
            while [ "$(md5sum </tmp/pattern)" = "$pattern" ]; do
                if [ -b /dev/vda ]; then
                    echo 3 >/proc/sys/vm/drop_caches
                    [ "$(dd if=/dev/vda bs=1M count=16 2>/dev/null | md5sum)" = "$pattern" ] || break
                fi
                for file in /sys/devices/system/cpu/cpu*/online; do
                    if grep -q 0 $file; then echo 1 >$file; fi
                done
                number=$((number + 1))
                has="$(grep -c ^processor /proc/cpuinfo) $(awk '/^MemTotal/ { print int($2 / 1024) }' /proc/meminfo)"
                echo "COUNT $number $(cut -d ' ' -f 1 /proc/uptime) $(ls -d /proc/[0-9]* | wc -l) $has"
                sleep 0.05
            done
            echo "COUNT FAIL"
        }

        for name in modules cpu memory clocksource clock timer interrupts rng disk filesystem net url fill; do
            check $name
        done
        echo "SELFCHECK DONE $passed ok $failed failed"
        case $(word end) in
            reboot) reboot -f;;
            halt) halt -f;;
            sleep) sleep 86400;;
            count) count;;
            panic) echo c >/proc/sysrq-trigger;;
        esac
        poweroff -f
        """#
}
