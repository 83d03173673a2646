// The initrd of the guests that `roost-bench devices` runs, and the script that measures: the same on the host.
//
// The guest's init mounts the image's disk (writes are the monitor's to lose) and runs the script in there. Words on the
// kernel's command line, each `bench.NAME=`:
//
//   only=NAME,NAME    run these parts of the script          seconds=N      how long each takes
//   addr=A/N          eth0's address                         peer=A port=N  where iperf3's server is
import Foundation
import Images

enum DeviceGuest {
    /// What a guest needs beside what Debian's initramfs has.
    private static let modules = [
        "virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "crc32c_intel", "ext4",
    ]

    static func initrd(kernel: DebianKernel, sample: [UInt8]) throws -> [UInt8] {
        var archive = try EarlyUserSpace.archive(modules: modules, root: kernel.root)
        archive.addFile("init", text: initScript, mode: 0o755)
        archive.addFile("work/measure", text: measureScript, mode: 0o755)
        archive.addFile("work/Makefile", text: makefile)
        archive.addFile("work/sample.c", contents: sample)
        return archive.serialized()
    }

    private static let initScript = #"""
        #!/bin/sh
        export PATH=/bin
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev 2>/dev/null
        echo 1 >/proc/sys/kernel/printk
        while read module; do insmod /modules/$module.ko 2>/dev/null; done </modules/order
        echo "@bench begin"
        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^bench\.$1=//p" | tail -n 1; }
        mount -t ext4 /dev/vda /mnt
        for folder in proc sys dev; do mount --move /$folder /mnt/$folder || mount --bind /$folder /mnt/$folder; done
        mount -t tmpfs tmp /mnt/tmp
        mount --bind /mnt/proc /proc
        cp -r /work /mnt/tmp/work
        ip link set lo up
        if [ -n "$(word addr)" ]; then ip addr add "$(word addr)" dev eth0; ip link set eth0 up; fi
        mkdir -p /mnt/dev/shm; mount -t tmpfs shm /mnt/dev/shm
        export raw=/dev/vdb qcow2=/dev/vdc direct=1 files=8
        export seconds=$(word seconds) peer=$(word peer) port=$(word port)
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin
        chroot /mnt /bin/sh /tmp/work/measure $(word only | /bin/tr , ' ')
        echo "@bench done"
        /bin/poweroff -f
        """#

    static let makefile = """
        objects := $(foreach n,1 2 3 4 5 6 7 8,unit$(n).o)
        all: $(objects)
        unit%.o: sample.c
        \tgcc -O3 -g -c -o $@ sample.c

        """

    /// Each part prints lines as `SystemRun` reads them: seconds and how much was done in them.
    static let measureScript = #"""
        #!/bin/sh
        # measure PART…: raw and qcow2 are where those disks are, peer and port where iperf3's server is.
        cd "$(dirname "$0")"
        result() { echo "@bench result $1 $2 $3 0 -"; }

        # The first files, which have the compiler read from the disk, don't count.
        compile() {
            make -s -j2 unit0.o unit9.o || return 1
            rm -f unit*.o
            read -r before rest </proc/uptime
            make -s -j2 || return 1
            read -r after rest </proc/uptime
            result "$1" "$(echo "$before $after" | awk '{ print $2 - $1 }')" 8
        }

        # disk NAME FILE KIND BLOCK DEPTH OPTION…: bytes that fio moved; see fio(1), "Terse output".
        disk() {
            name=$1 file=$2 kind=$3 block=$4 depth=$5; shift 5
            fio --name=x --filename="$file" --size=256m --rw="$kind" --bs="$block" --iodepth="$depth" \
                --direct="$direct" --time_based --runtime="$seconds" --ioengine=libaio --invalidate=0 --minimal "$@" \
                >terse 2>&1 || { tail -n 1 terse; return 1; }
            awk -F ';' -v name="$name" '/^3;/ {
                bytes = ($6 + $47) * 1024; ms = $9 > $50 ? $9 : $50
                if (name ~ /fsync/) bytes /= 4096
                printf "@bench result %s %f %.0f 0 -\n", name, ms / 1000, bytes }' terse
        }
        disks() {
            case $1 in
                *-randread) disk "$1" "$2" randread 4k 16;;
                *-randwrite) disk "$1" "$2" randwrite 4k 16;;
                *-read) disk "$1" "$2" read 1m 4;;
                *-write) disk "$1" "$2" write 1m 4;;
                *-fsync) disk "$1" "$2" randwrite 4k 1 --fsync=1;;
            esac
        }

        # network NAME OPTION…: bits that iperf3 moved.
        network() {
            name=$1; shift
            for try in 1 2 3 4 5 6 7 8 9 10; do
                timeout $((seconds + 20)) iperf3 -c "$peer" -p "$port" -t "$seconds" -f k --connect-timeout 3000 "$@" \
                    >iperf 2>&1 && break
                cat iperf
                sleep 0.5
            done
            awk -v name="$name" -v seconds="$seconds" '/receiver/ { for (n = 1; n < NF; n++) if ($(n + 1) == "Kbits/sec")
                printf "@bench result %s %d %.0f 0 -\n", name, seconds, $n * 1000 * seconds }' iperf
            grep -q receiver iperf || { tail -n 1 iperf; return 1; }
        }

        for part; do
            echo "@bench start $part"
            case $part in
                make-*) compile "$part";;
                raw-*) disks "$part" "$raw";;
                qcow2-*) disks "$part" "$qcow2";;
                net-from-host) network "$part" -R;;
                net-*) network "$part";;
                serve) iperf3 -s -p "$port";;
            esac >output 2>&1 && cat output || { cat output; echo "@bench fail $part $(tail -n 1 output)"; }
        done
        """#
}
