// An initramfs whose init is a host: it loads KVM and runs Roost in its virtual machine, for tests of the hardware engine
// on machines that have none. The outer machine only lends a processor.
//
// Words on the kernel's command line steer it:
//
//   nested.do=check,move      what to do, of the functions in the script (check)
//   nested.guest=WORDS        words for the inner kernel's command line, commas for spaces
internal import Foundation

/// Builds the initramfs of a machine that runs Roost on KVM.
public enum NestedImage {
    /// What the outer machine loads: KVM for both vendors, and a clock's worth of nothing else.
    static let modules = ["kvm", "kvm_amd", "kvm_intel"]

    /// The uncompressed cpio archive.
    ///
    /// - Parameters:
    ///   - kernel: what both machines boot
    ///   - programs: files to take with the shared libraries that they need, for `/bin`
    ///   - files: further files or folders, taken where they are
    public static func initramfs(
        kernel: DebianKernel, programs: [String], files: [String]
    ) throws(ImageError) -> [UInt8] {
        var archive = try EarlyUserSpace.archive(modules: modules, root: kernel.root)
        archive.addFile("init", text: initScript, mode: 0o755)
        archive.addFile("guest/vmlinuz", contents: try read(kernel.image))
        archive.addFile("guest/initrd", contents: try SelfCheckImage.initramfs(for: kernel, with: ["virtio_mem"]))
        var taken: Set<String> = []
        for program in programs {
            let name = String(program.split(separator: "/").last ?? "")
            archive.addFile("bin/" + name, contents: try read(program), mode: 0o755)
            for library in try libraries(of: program) where taken.insert(library.name).inserted {
                archive.addFile(library.place, contents: try read(library.path), mode: 0o755)
            }
        }
        for file in files { try add(file, to: &archive) }
        return archive.serialized()
    }

    private static func read(_ path: String) throws(ImageError) -> [UInt8] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ImageError(.fileSystem, "cannot read \(path)")
        }
        return Array(data)
    }

    private static func add(_ path: String, to archive: inout CPIOArchive) throws(ImageError) {
        let resolved = URL(fileURLWithPath: path).resolvingSymlinksInPath().path
        guard let kind = (try? FileManager.default.attributesOfItem(atPath: resolved))?[.type] as? FileAttributeType
        else {
            return
        }
        if kind != .typeDirectory { return archive.addFile(path, contents: try read(path)) }
        for name in ((try? FileManager.default.contentsOfDirectory(atPath: path)) ?? []).sorted() {
            try add(path + "/" + name, to: &archive)
        }
    }

    /// The shared libraries that a program needs, as the dynamic linker says: all go to `/lib`, the linker to its place.
    private static func libraries(
        of program: String
    ) throws(ImageError) -> [(name: String, path: String, place: String)] {
        let lines = String(decoding: try Tool.output("ldd", [program]), as: UTF8.self).split(separator: "\n")
        return lines.compactMap { line in
            guard let path = line.split(separator: " ").first(where: { $0.trimmingPrefix("\t").hasPrefix("/") }) else {
                return nil
            }
            let full = String(path.trimmingPrefix("\t"))
            let name = String(full.split(separator: "/").last ?? "")
            return (name, full, name.hasPrefix("ld-linux") ? full : "lib/" + name)
        }
    }

    static let initScript = #"""
        #!/bin/sh
        # Runs Roost on this machine's KVM; see NestedImage.swift.
        export PATH=/bin LD_LIBRARY_PATH=/lib HOME=/tmp
        mount -t proc proc /proc
        mount -t sysfs sys /sys
        mount -t devtmpfs dev /dev 2>/dev/null
        mkdir -p /tmp /run /dev/shm
        mount -t tmpfs -o size=90% tmp /tmp
        mount -t tmpfs -o size=90% shm /dev/shm
        echo 1 >/proc/sys/kernel/printk
        ip link set lo up

        word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^nested\.$1=//p" | tail -n 1; }
        while read module; do insmod /modules/$module.ko 2>/tmp/insmod; done </modules/order
        uptime() { read up rest </proc/uptime; echo "$up"; }
        say() { echo "NESTED $(uptime) $*"; }
        say BEGIN "$(uname -r)" kvm "$(ls /dev/kvm 2>&1)"

        stuck() { # what each thread waits for
            grep -h -A 9 clockid /proc/$(pidof roost)/fdinfo/* | sed "s/^/stuck: $(uptime) timer /"
            for task in /proc/$(pidof roost)/task/*; do
                echo "stuck: $(cat $task/comm) $(sed -n 's/^State:.//p' $task/status) $(cat $task/wchan) $(cat $task/syscall)"
                sed 's/^/stuck:   /' $task/stack
            done
        }
        guest() { # name, options: boots the guest
            name=$1; shift
            say "start $name"
            { sleep 120; stuck; } & watch=$!
            roost run --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M --no-reboot --stats "$@" \
                </dev/null 2>/tmp/$name.err
            status=$?
            kill $watch
            sed "s/^/$name! /" /tmp/$name.err
            say "$name status $status"
        }
        words=$(word guest | tr ',' ' ')

        check() { # the whole self-check
            truncate -s 64M /tmp/disk
            guest check --engine auto --disk /tmp/disk --net user \
                --append "console=ttyS0 quiet selfcheck.now=$(date +%s) $words"
            rm -f /tmp/disk
        }
        choose() { # without /dev/kvm
            mv /dev/kvm /dev/kvm.away
            roost run --engine kvm --kernel /guest/vmlinuz --net none </dev/null 2>&1 | sed 's/^/absent! /'
            timeout 4 roost run --kernel /guest/vmlinuz --net none --append quiet </dev/null 2>&1 | sed 's/^/none! /'
            mv /dev/kvm.away /dev/kvm
        }
        move() { # from engine to engine and back all the time
            truncate -s 64M /tmp/disk
            guest move --engine kvm --move-every 400 --disk /tmp/disk --net user \
                --append "console=ttyS0 quiet selfcheck.skip=clock $words"
            rm -f /tmp/disk
        }
        several() { # two processors
            truncate -s 64M /tmp/disk
            guest several --engine kvm --cpus 2 --disk /tmp/disk --net user \
                --append "console=ttyS0 quiet selfcheck.skip=clock $words"
            rm -f /tmp/disk
        }
        counted() { # N, lines to leave out: waits until the kept guest has counted so far
            for second in $(seq 90); do
                counts=$(roost logs kept | tr -d '\r' | tail -n +$((${2:-0} + 1)) | sed -n 's/^COUNT \([0-9]*\).*/\1/p')
                last=$(echo "$counts" | tail -n 1)
                [ "${last:-0}" -ge "$1" ] && return
                sleep 1
            done
        }
        saved() { # a snapshot of a kept machine while it runs, and the machine goes on from it
            roost run --engine kvm --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M --net none --name kept -d \
                --append "console=ttyS0 quiet selfcheck.only=modules selfcheck.end=count"
            counted 5
            roost snapshot take kept one 2>&1 | sed 's/^/saved! /'
            counted $((last + 5))
            say saved "went on to $last"
            roost events kept | sed 's/^/saved! /'
            roost kill kept
            lines=$(roost logs kept | wc -l)
            roost restore kept one --yes 2>&1 | sed 's/^/saved! /'
            counted $((last + 10)) "$lines"
            say saved "restored, counted from $(echo "$counts" | head -n 1) to $last in $(echo "$counts" | wc -l) lines"
            roost delete kept --force --yes
        }
        becomes() { # processors and MiB: waits until the kept guest tells of them
            for second in $(seq 60); do
                has=$(roost logs kept | tr -d '\r' | sed -n 's/^COUNT [0-9]* [0-9.]* [0-9]* \([0-9]* [0-9]*\)$/\1/p' | tail -n 1)
                [ "$has" = "${1:-$has}" ] && break
                sleep 1
            done
            say plugged "$2 $has"
        }
        plugged() { # a processor and 128 MiB come and go while a guest runs
            roost run --engine kvm --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M,max=1G --cpus 1,max=2 \
                --net none --name kept -d --append \
                "console=ttyS0 quiet memhp_default_state=online_movable selfcheck.only=modules selfcheck.end=count"
            counted 3
            becomes "" "begins with"
            first=$has mib=${has#* }
            roost set kept --cpus 2 2>&1 | sed 's/^/plugged! /'
            roost set kept --memory 384M 2>&1 | sed 's/^/plugged! /'
            becomes "2 $((mib + 128))" "with more"
            roost set kept --cpus 1 2>&1 | sed 's/^/plugged! /'
            roost set kept --memory 256M 2>&1 | sed 's/^/plugged! /'
            becomes "$first" "again"
            counted $((last + 20))
            say plugged "went on to $last"
            roost delete kept --force --yes
        }
        begin() { # name, words of the inner kernel, command: seconds to user space, then the memory beside the guest's
            local name=$1 append=$2; shift 2
            rm -f /tmp/$name; touch /tmp/$name
            start=$(uptime)
            "$@" -append "$append" </dev/null >/tmp/$name 2>/tmp/$name.err & process=$!
            while ! grep -q "SELFCHECK BEGIN" /tmp/$name && [ -d /proc/$process ]; do usleep 10000; done
            say "$name userspace $(echo "$(uptime) $start" | awk '{ print $1 - $2 }')"
            sleep 1
            # Anonymous memory outside the guest's: pages of files that nobody changed are shared with other machines.
            awk '/^[0-9a-f]+-/ { size = 0; guest = /guest-ram/ } /^Size:/ { size = $2 } /^Anonymous:/ {
                if (!guest && size < 250000) sum += $2 } END { print sum }' /proc/$process/smaps >/tmp/memory
            say "$name memory $(cat /tmp/memory) KiB"
            [ -d /proc/$process ] || sed "s/^/$name! /" /tmp/$name.err
            kill -9 $process
            wait $process
        }
        roost_boot() { exec roost run --engine kvm --kernel /guest/vmlinuz --initrd /guest/initrd --memory 256M --net none \
            --no-reboot --stats "-$1" "$2"; }
        machine="qemu-system-x86_64 -L /usr/share/qemu -accel kvm -M microvm -cpu host -m 256 -nodefaults -no-user-config"
        machine="$machine -nographic -no-reboot -serial stdio -kernel /guest/vmlinuz -initrd /guest/initrd"
        append="console=ttyS0 quiet selfcheck.only=none"
        boot_roost() { begin roost "$append selfcheck.end=sleep" roost_boot; }
        boot_qemu() { begin qemu "$append selfcheck.end=sleep" $machine; }
        exits() { # returns to user space in a whole boot, of both
            roost_boot -append "$append" </dev/null >/tmp/roost 2>/tmp/roost.err & wait $!
            sed -n 's/^hypervisor *exits \([0-9]*\).*/NESTED 0 roost exits \1/p' /tmp/roost.err
            # The microvm may not power off: what it did until the guest was done counts.
            rm -f /tmp/qemu; touch /tmp/qemu
            $machine -append "$append" -trace kvm_run_exit -D /tmp/trace </dev/null >/tmp/qemu 2>/tmp/qemu.err & process=$!
            while ! grep -q "SELFCHECK DONE" /tmp/qemu && [ -d /proc/$process ]; do usleep 10000; done
            kill $process; wait $process
            say "qemu exits $(grep -c kvm_run_exit /tmp/trace)"
        }
        for job in $(word do | tr ',' ' '); do $job; done
        say END
        poweroff -f
        """#
}
