// What this host can do for virtual machines: `roost doctor`.
internal import HostOS
internal import KVM

/// One page on the host, found by asking.
public struct HostReport: Sendable, Codable, Equatable {
    /// How one thing stands.
    public enum Standing: String, Sendable, Codable {
        /// As it should be.
        case good
        /// There, with limits, or only useful to some.
        case limited
        /// Not there.
        case missing
    }

    /// One thing that virtual machines use.
    public struct Item: Sendable, Codable, Equatable {
        /// What it is.
        public var name: String
        /// How it stands.
        public var standing: Standing
        /// What was found, in a line.
        public var detail: String
        /// The command, or the step, that gives what is missing.
        public var remedy: String?
    }

    /// The engine that `--engine auto` takes here.
    public var engine: String
    /// All that was looked at.
    public var items: [Item]

    /// Looks at this host.
    public init() {
        let hypervisor = Self.hypervisor()
        engine = hypervisor.standing == .good ? "kvm" : "translator"
        items = [
            hypervisor, Self.processor(), Self.memory(), Self.hugePages(), Self.transfers(), Self.tap(),
            Self.userNamespaces(), Self.stubs(),
        ]
        items += Self.tools()
    }

    // MARK: Each

    private static func hypervisor() -> Item {
        let name = "KVM"
        do throws(KVMError) {
            let host = try KVMHost()
            if let obstacle = KVMProbe.obstacle(on: host) {
                return Item(
                    name: name, standing: .limited, detail: obstacle.description,
                    remedy: "use a machine, or an instance type, that passes VMX or SVM to its guests")
            }
            return Item(name: name, standing: .good, detail: "\(KVMHost.path) answers: \(KVMProbe.kind)", remedy: nil)
        } catch {
            return Item(
                name: name, standing: .missing, detail: error.description, remedy: remedy(for: error))
        }
    }

    private static func remedy(for error: KVMError) -> String {
        switch error.code {
        case .forbidden: return "sudo usermod -aG kvm $USER, then log in anew"
        case .absent where KVMHost.processorHasVirtualization:
            return "sudo modprobe kvm_amd || sudo modprobe kvm_intel; in a container: pass --device /dev/kvm"
        case .absent:
            return "the translator does without; for KVM, switch virtualization on in the firmware or hypervisor"
        case .unsuitable: return "a newer kernel (5.10 or later)"
        default: return "look at dmesg"
        }
    }

    private static func processor() -> Item {
        let virtualization = KVMHost.processorHasVirtualization
        let isGuest = KVMProbe.runsUnderHypervisor
        return Item(
            name: "processor", standing: virtualization ? .good : .limited,
            detail: (virtualization ? "has virtualization" : "shows no VMX and no SVM")
                + (isGuest ? "; this host is itself a virtual machine" : ""),
            remedy: nil)
    }

    private static func memory() -> Item {
        let (total, available) = (HostMemory.total, HostFacts.available)
        return Item(
            name: "memory", standing: available < 512 << 20 ? .limited : .good,
            detail: "\(total >> 20) MiB, \(available >> 20) MiB of them available", remedy: nil)
    }

    private static func hugePages() -> Item {
        let transparent = HostFacts.chosen("/sys/kernel/mm/transparent_hugepage/shmem_enabled") ?? "not there"
        let reserved = HostFacts.number("/proc/sys/vm/nr_hugepages") ?? 0
        let isGood = ["always", "advise", "within_size", "force"].contains(transparent)
        return Item(
            name: "huge pages", standing: isGood || reserved > 0 ? .good : .limited,
            detail: "for shared memory: \(transparent); reserved: \(reserved)",
            remedy: isGood ? nil : "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled")
    }

    private static func transfers() -> Item {
        let name = "io_uring"
        guard let obstacle = IORing.obstacle else {
            return Item(
                name: name, standing: .good, detail: "reads raw disks' files for several requests at once", remedy: nil)
        }
        let isOff = HostFacts.number("/proc/sys/kernel/io_uring_disabled").map { $0 > 0 } ?? false
        return Item(
            name: name, standing: .limited, detail: "\(obstacle.description); disks use threads instead",
            remedy: isOff
                ? "sudo sysctl kernel.io_uring_disabled=0" : "in a container: a seccomp profile that allows io_uring")
    }

    private static func tap() -> Item {
        let path = "/dev/net/tun"
        guard FileDescriptor.exists(path) else {
            return Item(name: "TAP", standing: .missing, detail: "there is no \(path)", remedy: "sudo modprobe tun")
        }
        if let obstacle = FileDescriptor.obstacle(to: path) {
            return Item(name: "TAP", standing: .missing, detail: obstacle.description, remedy: "sudo chmod 666 \(path)")
        }
        return Item(
            name: "TAP", standing: .good, detail: "\(path) can be opened; user-mode networking doesn't need it",
            remedy: nil)
    }

    private static func userNamespaces() -> Item {
        let most = HostFacts.number("/proc/sys/user/max_user_namespaces") ?? 0
        let isOff = HostFacts.number("/proc/sys/kernel/unprivileged_userns_clone") == 0
        if most > 0 && !isOff {
            return Item(name: "user namespaces", standing: .good, detail: "at most \(most)", remedy: nil)
        }
        return Item(
            name: "user namespaces", standing: .limited, detail: "off: images are built with fakechroot",
            remedy: isOff
                ? "sudo sysctl kernel.unprivileged_userns_clone=1" : "sudo sysctl user.max_user_namespaces=15000")
    }

    /// The processes that run user code natively under the translator are traced.
    private static func stubs() -> Item {
        let scope = HostFacts.number("/proc/sys/kernel/yama/ptrace_scope") ?? 0
        return Item(
            name: "ptrace", standing: scope >= 3 ? .limited : .good,
            detail: scope >= 3 ? "off: user code is always translated" : "allowed for children",
            remedy: scope >= 3 ? "sudo sysctl kernel.yama.ptrace_scope=1, after a restart" : nil)
    }

    private static func tools() -> [Item] {
        let wanted = [
            ("mmdebstrap", "mmdebstrap", "image building"), ("mke2fs", "e2fsprogs", "image building"),
            ("busybox", "busybox-static", "the early user space of guests"),
            ("qemu-system-x86_64", "qemu-system-x86", "comparisons and tests only"),
        ]
        return wanted.map { program, package, use in
            let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            let found = folders.map { $0 + "/" + program }.first { FileDescriptor.exists($0) }
            return Item(
                name: program, standing: found == nil ? .missing : .good,
                detail: "\(found ?? "not installed"); for \(use)",
                remedy: found == nil ? "sudo apt-get install \(package)" : nil)
        }
    }

    // MARK: For a person

    /// The page.
    public var text: String {
        let width = items.map(\.name.count).max() ?? 0
        var lines = ["--engine auto takes the \(engine) engine here.", ""]
        for item in items {
            let sign = item.standing == .good ? "ok     " : item.standing == .limited ? "limited" : "missing"
            let name = item.name + String(repeating: " ", count: width - item.name.count)
            lines.append("\(sign)  \(name)  \(item.detail)")
            if let remedy = item.remedy {
                lines.append(String(repeating: " ", count: width + 11) + "→ \(remedy)")
            }
        }
        return lines.joined(separator: "\n")
    }
}

/// Small facts from /proc and /sys.
enum HostFacts {
    static func text(_ path: String) -> String? {
        guard let file = try? FileDescriptor.open(path, 0), let bytes = try? file.read(at: 0, count: 4096) else {
            return nil
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    static func number(_ path: String) -> Int? {
        text(path).flatMap { Int($0.prefix { $0.isNumber || $0 == "-" }) }
    }

    /// The word in brackets.
    static func chosen(_ path: String) -> String? {
        guard let text = text(path), let start = text.firstIndex(of: "[") else { return nil }
        return String(text[text.index(after: start)...].prefix { $0 != "]" })
    }

    /// MemAvailable, in bytes.
    static var available: UInt64 {
        guard let text = text("/proc/meminfo"),
            let line = text.split(separator: "\n").first(where: { $0.hasPrefix("MemAvailable:") })
        else { return 0 }
        return (UInt64(line.filter(\.isNumber)) ?? 0) << 10
    }
}
