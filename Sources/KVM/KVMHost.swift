// /dev/kvm: what the host's hypervisor can.
//
// - Spec: Linux Documentation/virt/kvm/api.rst, section 4: KVM_GET_API_VERSION, KVM_CHECK_EXTENSION,
//   KVM_GET_SUPPORTED_CPUID.
//
// Invariants of this target (part of the trusted core, so pointers are not marked `unsafe`): structures handed to the
// kernel live until the call returns; `kvm_run` and the coalescing ring stay mapped as long as their engine.
internal import CHost
public import CPU
internal import HostOS

/// The host's KVM.
public final class KVMHost: Sendable {
    /// Where it is.
    public static let path = "/dev/kvm"
    /// Extensions that the engine can't do without, and their names.
    private static let needed: [(Int32, String)] = [
        (KVM_CAP_USER_MEMORY, "USER_MEMORY"), (KVM_CAP_SPLIT_IRQCHIP, "SPLIT_IRQCHIP"),
        (KVM_CAP_IMMEDIATE_EXIT, "IMMEDIATE_EXIT"), (KVM_CAP_SIGNAL_MSI, "SIGNAL_MSI"), (KVM_CAP_XSAVE, "XSAVE"),
        (KVM_CAP_XCRS, "XCRS"), (KVM_CAP_VCPU_EVENTS, "VCPU_EVENTS"), (KVM_CAP_DEBUGREGS, "DEBUGREGS"),
        (KVM_CAP_MP_STATE, "MP_STATE"), (KVM_CAP_EXT_CPUID, "EXT_CPUID"), (KVM_CAP_SYNC_REGS, "SYNC_REGS"),
        (KVM_CAP_TSC_DEADLINE_TIMER, "TSC_DEADLINE_TIMER"),
    ]

    let device: FileDescriptor
    let mapSize: Int
    private let isCurrent: Bool

    /// Opens it, and makes sure that it has what the engine needs.
    public init() throws(KVMError) {
        do {
            device = try FileDescriptor.open(Self.path, 2)
            let version = try device.control(UInt64(ROOST_KVM_GET_API_VERSION.rawValue))
            mapSize = Int(try device.control(UInt64(ROOST_KVM_GET_VCPU_MMAP_SIZE.rawValue)))
            isCurrent = version == 12
        } catch {
            throw Self.explain(error)
        }
        guard isCurrent else { throw KVMError(.unsuitable, "the host's KVM is not of API version 12") }
        let missing = Self.needed.filter { extent(of: $0.0) <= 0 }.map(\.1)
        guard missing.isEmpty else {
            throw KVMError(.unsuitable, "the host's KVM lacks \(missing.joined(separator: ", "))")
        }
    }

    private static func explain(_ error: HostError) -> KVMError {
        switch error.errno {
        case HostErrorNumber.notFound: return KVMError(.absent, "there is no \(path)")
        case HostErrorNumber.noDevice:
            return KVMError(
                .absent, "\(path) has no driver behind it: the processor has no virtualization, or it is off")
        case HostErrorNumber.accessDenied:
            return KVMError(.forbidden, "\(path) is not for this user: join the group that owns it (usually kvm)")
        default: return KVMError(.refused, "\(path): \(error.reason)")
        }
    }

    /// What KVM_CHECK_EXTENSION says: zero or less is no.
    public func extent(of capability: Int32) -> Int32 {
        (try? device.control(UInt64(ROOST_KVM_CHECK_EXTENSION.rawValue), value: UInt64(capability))) ?? 0
    }

    /// The CPUID that guests can have.
    public func supportedCPUID() throws(KVMError) -> [CPUIDRow] {
        let list = UnsafeMutablePointer<roost_kvm_cpuid>.allocate(capacity: 1)
        defer { list.deallocate() }
        list.initialize(to: roost_kvm_cpuid())
        list.pointee.count = UInt32(ROOST_KVM_CPUID_ENTRIES)
        try asking("supported CPUID") { () throws(HostError) in
            try device.control(roost_kvm_get_supported_cpuid, list)
        }
        return (0..<min(list.pointee.count, UInt32(ROOST_KVM_CPUID_ENTRIES))).map { n in
            let entry = roost_kvm_cpuid_at(list, n)!.pointee
            return CPUIDRow(
                leaf: entry.function, subleaf: entry.flags & 1 != 0 ? entry.index : nil,
                registers: [entry.eax, entry.ebx, entry.ecx, entry.edx])
        }
    }

    /// Whether the processor that this process sees has VMX or SVM.
    ///
    /// - Spec: SDM 3C 24.6; AMD APM 2 15.4.
    public static var processorHasVirtualization: Bool {
        var (a, b, c, d): (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
        roost_cpuid(1, 0, &a, &b, &c, &d)
        if c & 1 << 5 != 0 { return true }
        roost_cpuid(0x8000_0000, 0, &a, &b, &c, &d)
        guard a >= 0x8000_0001 else { return false }
        roost_cpuid(0x8000_0001, 0, &a, &b, &c, &d)
        return c & 1 << 2 != 0
    }
}
