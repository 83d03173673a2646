// Processor models on the host's own virtualization: what the hypervisor can't give, a model there doesn't have.
internal import CHost

/// One answer of CPUID.
public struct CPUIDRow: Sendable, Equatable {
    /// EAX before.
    public var leaf: UInt32
    /// ECX before; nil where it doesn't matter.
    public var subleaf: UInt32?
    /// EAX, EBX, ECX, EDX after.
    public var registers: [UInt32]

    /// Makes a row.
    public init(leaf: UInt32, subleaf: UInt32?, registers: [UInt32]) {
        self.leaf = leaf
        self.subleaf = subleaf
        self.registers = registers
    }
}

extension CPUModel {
    /// Features that don't hang on the hypervisor's answer: it is there by definition, and these two come from the local
    /// APICs, which are asked about elsewhere.
    private static let given: Set<String> = ["hypervisor", "x2apic", "tsc_deadline_timer"]

    private static func has(_ bit: FeatureBit, _ supported: [CPUIDRow]) -> Bool {
        if given.contains(bit.name) { return true }
        let subleaf: UInt32 = bit.leaf == 0xD ? 1 : 0
        let row = supported.first { $0.leaf == bit.leaf && ($0.subleaf ?? subleaf) == subleaf }
        return row.map { $0.registers[bit.register] & 1 << bit.bit != 0 } ?? false
    }

    /// Whether the host keeps protection keys in another place of the XSAVE area than the software engines do.
    private static func movesProtectionKeys(_ supported: [CPUIDRow]) -> Bool {
        let row = supported.first { $0.leaf == 0xD && $0.subleaf == 9 }
        return row.map { $0.registers[1] != UInt32(ExtendedState.pkruOffset) } ?? true
    }

    /// This model's features that a hypervisor with this CPUID can't give.
    public func lacking(in supported: [CPUIDRow]) -> [String] {
        let own = Set(featureNames)
        return Self.bits.filter { own.contains($0.name) && !Self.has($0, supported) }.map(\.name)
    }

    /// This model without what a hypervisor with this CPUID can't give: a guest of it can go on under any engine.
    public func limited(to supported: [CPUIDRow]) -> CPUModel {
        var missing = Set(lacking(in: supported))
        if Self.movesProtectionKeys(supported) { missing.insert("pku") }
        return CPUModel(
            name: name, names: featureNames.filter { !missing.contains($0) }, vendor: vendor, signature: signature,
            brand: brand)
    }

    /// The model's CPUID as a hypervisor takes it: sizes and places that are the processor's own come from its answers.
    /// `id` is the processor's place among `count`.
    public func rows(on supported: [CPUIDRow], processor id: Int = 0, of count: Int = 1) -> [CPUIDRow] {
        var rows: [CPUIDRow] = []
        let cpuid = cpuid(processor: id, of: count)
        for n in 0..<(cpuid.count / 6) {
            let words = Array(cpuid[(n * 6)..<(n * 6 + 6)])
            var row = CPUIDRow(leaf: words[0], subleaf: words[1] == ~0 ? nil : words[1], registers: Array(words[2...]))
            let host = supported.first { $0.leaf == row.leaf && ($0.subleaf ?? 0) == (row.subleaf ?? 0) }
            switch row.leaf {
            // Pages and time stamps of the paravirtual clock, as far as this kernel has them.
            case 0x4000_0001: row.registers[0] &= host?.registers[0] ?? ~0
            case 0xD where (row.subleaf ?? 0) >= 2: if let host { row.registers = host.registers }
            case 0x8000_0008:
                let bits = min(row.registers[0] & 0xFF, (host?.registers[0] ?? 0xFF) & 0xFF)
                row.registers[0] = row.registers[0] & ~0xFF | bits
            default: break
            }
            rows.append(row)
        }
        return rows.map { row in
            guard row.leaf == 0xD, row.subleaf == 0 else { return row }
            var row = row
            let ends = rows.filter { $0.leaf == 0xD && ($0.subleaf ?? 0) >= 2 }.map {
                $0.registers[0] + $0.registers[1]
            }
            row.registers[2] = max(576, ends.max() ?? 0)
            return row
        }
    }
}
