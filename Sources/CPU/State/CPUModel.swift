// Processor models: what CPUID says and which control bits exist, as a table.
internal import CHost

/// A CPUID feature bit: where it stands, and the instructions that hang on it.
struct FeatureBit {
    var leaf: UInt32
    /// 0 EAX, 1 EBX, 2 ECX, 3 EDX.
    var register: Int
    var bit: UInt32
    var name: String
    /// The instructions' feature, if it has any.
    var feature: CPUFeature?
    /// Needs the host to have it: it is executed by the host's own unit.
    var needsHost = false
}

/// A processor model: the same machine on any host that can.
public struct CPUModel: Sendable {
    /// What `--cpu` calls it.
    public let name: String
    /// CPUID rows: leaf, subleaf (all ones: any), EAX, EBX, ECX, EDX.
    let cpuid: [UInt32]
    /// The features that instructions are checked against.
    let features: UInt64
    /// CR4 bits that may be set.
    let cr4: UInt64
    /// EFER bits that may be set.
    let efer: UInt64
    /// XCR0 bits that may be set.
    let xcr0: UInt64
    /// CPUID.1:EAX.
    let signature: UInt32
    /// Names of its features, vendor and brand: what it is made of.
    let featureNames: [String]
    let vendor, brand: String

    /// Whether instructions of a feature exist.
    public func isAvailable(_ feature: CPUFeature) -> Bool { features & 1 << UInt64(feature.rawValue) != 0 }

    /// All of Roost's feature bits.
    static let bits: [FeatureBit] = [
        FeatureBit(leaf: 1, register: 3, bit: 0, name: "fpu", feature: .x87, needsHost: true),
        FeatureBit(leaf: 1, register: 3, bit: 2, name: "de"),
        FeatureBit(leaf: 1, register: 3, bit: 3, name: "pse"),
        FeatureBit(leaf: 1, register: 3, bit: 4, name: "tsc"),
        FeatureBit(leaf: 1, register: 3, bit: 5, name: "msr"),
        FeatureBit(leaf: 1, register: 3, bit: 6, name: "pae"),
        FeatureBit(leaf: 1, register: 3, bit: 7, name: "mce"),
        FeatureBit(leaf: 1, register: 3, bit: 8, name: "cx8", feature: .cx8),
        FeatureBit(leaf: 1, register: 3, bit: 9, name: "apic"),
        FeatureBit(leaf: 1, register: 3, bit: 11, name: "sep", feature: .sysenter),
        FeatureBit(leaf: 1, register: 3, bit: 12, name: "mtrr"),
        FeatureBit(leaf: 1, register: 3, bit: 13, name: "pge"),
        FeatureBit(leaf: 1, register: 3, bit: 14, name: "mca"),
        FeatureBit(leaf: 1, register: 3, bit: 15, name: "cmov", feature: .cmov),
        FeatureBit(leaf: 1, register: 3, bit: 16, name: "pat"),
        FeatureBit(leaf: 1, register: 3, bit: 17, name: "pse36"),
        FeatureBit(leaf: 1, register: 3, bit: 19, name: "clflush", feature: .clflush),
        FeatureBit(leaf: 1, register: 3, bit: 23, name: "mmx", feature: .mmx, needsHost: true),
        FeatureBit(leaf: 1, register: 3, bit: 24, name: "fxsr"),
        FeatureBit(leaf: 1, register: 3, bit: 25, name: "sse", feature: .sse, needsHost: true),
        FeatureBit(leaf: 1, register: 3, bit: 26, name: "sse2", feature: .sse2, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 0, name: "sse3", feature: .sse3, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 1, name: "pclmulqdq", feature: .pclmul, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 3, name: "monitor", feature: .monitor),
        FeatureBit(leaf: 1, register: 2, bit: 9, name: "ssse3", feature: .ssse3, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 12, name: "fma", feature: .fma, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 13, name: "cx16", feature: .cx16, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 17, name: "pcid"),
        FeatureBit(leaf: 1, register: 2, bit: 19, name: "sse4_1", feature: .sse41, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 20, name: "sse4_2", feature: .sse42, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 21, name: "x2apic"),
        FeatureBit(leaf: 1, register: 2, bit: 22, name: "movbe", feature: .movbe),
        FeatureBit(leaf: 1, register: 2, bit: 23, name: "popcnt", feature: .popcnt, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 24, name: "tsc_deadline_timer"),
        FeatureBit(leaf: 1, register: 2, bit: 25, name: "aes", feature: .aes, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 26, name: "xsave", feature: .xsave),
        FeatureBit(leaf: 1, register: 2, bit: 28, name: "avx", feature: .avx, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 29, name: "f16c", feature: .f16c, needsHost: true),
        FeatureBit(leaf: 1, register: 2, bit: 30, name: "rdrand", feature: .rdrand),
        FeatureBit(leaf: 1, register: 2, bit: 31, name: "hypervisor"),
        FeatureBit(leaf: 7, register: 1, bit: 0, name: "fsgsbase", feature: .fsgsbase),
        FeatureBit(leaf: 7, register: 1, bit: 3, name: "bmi1", feature: .bmi1, needsHost: true),
        FeatureBit(leaf: 7, register: 1, bit: 5, name: "avx2", feature: .avx2, needsHost: true),
        FeatureBit(leaf: 7, register: 1, bit: 7, name: "smep"),
        FeatureBit(leaf: 7, register: 1, bit: 8, name: "bmi2", feature: .bmi2, needsHost: true),
        FeatureBit(leaf: 7, register: 1, bit: 9, name: "erms"),
        FeatureBit(leaf: 7, register: 1, bit: 10, name: "invpcid", feature: .invpcid),
        FeatureBit(leaf: 7, register: 1, bit: 18, name: "rdseed", feature: .rdseed),
        FeatureBit(leaf: 7, register: 1, bit: 19, name: "adx", feature: .adx),
        FeatureBit(leaf: 7, register: 1, bit: 20, name: "smap", feature: .smap),
        FeatureBit(leaf: 7, register: 1, bit: 23, name: "clflushopt", feature: .clflushopt),
        FeatureBit(leaf: 7, register: 1, bit: 24, name: "clwb", feature: .clwb),
        FeatureBit(leaf: 7, register: 1, bit: 29, name: "sha_ni", feature: .sha, needsHost: true),
        FeatureBit(leaf: 7, register: 2, bit: 3, name: "pku", feature: .pku),
        FeatureBit(leaf: 7, register: 2, bit: 16, name: "la57"),
        FeatureBit(leaf: 7, register: 2, bit: 22, name: "rdpid", feature: .rdpid),
        FeatureBit(leaf: 7, register: 3, bit: 4, name: "fsrm"),
        FeatureBit(leaf: 0xD, register: 0, bit: 0, name: "xsaveopt", feature: .xsaveopt),
        FeatureBit(leaf: 0xD, register: 0, bit: 1, name: "xsavec", feature: .xsavec),
        FeatureBit(leaf: 0xD, register: 0, bit: 2, name: "xgetbv1"),
        FeatureBit(leaf: 0xD, register: 0, bit: 3, name: "xsaves", feature: .xsaves),
        FeatureBit(leaf: 0x8000_0001, register: 2, bit: 0, name: "lahf_lm"),
        FeatureBit(leaf: 0x8000_0001, register: 2, bit: 5, name: "abm", feature: .lzcnt, needsHost: true),
        FeatureBit(leaf: 0x8000_0001, register: 2, bit: 8, name: "3dnowprefetch"),
        FeatureBit(leaf: 0x8000_0001, register: 3, bit: 11, name: "syscall", feature: .syscall),
        FeatureBit(leaf: 0x8000_0001, register: 3, bit: 20, name: "nx"),
        FeatureBit(leaf: 0x8000_0001, register: 3, bit: 26, name: "pdpe1gb"),
        FeatureBit(leaf: 0x8000_0001, register: 3, bit: 27, name: "rdtscp", feature: .rdtscp),
        FeatureBit(leaf: 0x8000_0001, register: 3, bit: 29, name: "lm"),
        FeatureBit(leaf: 0x8000_0007, register: 3, bit: 8, name: "constant_tsc"),
    ]

    private static let v1 = [
        "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat",
        "pse36", "clflush", "mmx", "fxsr", "sse", "sse2", "syscall", "nx", "lm", "hypervisor", "x2apic",
        "tsc_deadline_timer", "constant_tsc", "rdtscp",
    ]
    private static let v2 = v1 + ["sse3", "ssse3", "sse4_1", "sse4_2", "cx16", "popcnt", "lahf_lm"]
    private static let v3 =
        v2 + ["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave", "xsaveopt", "xgetbv1"]
    private static let server =
        v3 + [
            "aes", "pclmulqdq", "rdrand", "rdseed", "fsgsbase", "smep", "smap", "erms", "invpcid", "pcid", "adx",
            "clflushopt", "xsavec", "xsaves", "pku", "3dnowprefetch", "pdpe1gb", "monitor",
        ]
    private static let pentium3 = [
        "fpu", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "sep", "mtrr", "pge", "mca", "cmov", "pat",
        "pse36",
        "mmx", "fxsr", "sse",
    ]

    /// Model name, features, vendor, CPUID signature, brand.
    private static let table: [(String, [String], String, UInt32, String)] = [
        ("486", ["fpu"], "GenuineIntel", 0x480, ""),
        ("pentium", ["fpu", "de", "pse", "tsc", "msr", "mce", "cx8"], "GenuineIntel", 0x525, ""),
        ("pentium3", pentium3, "GenuineIntel", 0x673, ""),
        ("x86-64", v1, "GenuineIntel", 0x60FB1, "Roost x86-64-v1 processor"),
        ("x86-64-v2", v2, "GenuineIntel", 0x106A3, "Roost x86-64-v2 processor"),
        ("x86-64-v3", v3, "GenuineIntel", 0x306C1, "Roost x86-64-v3 processor"),
        ("server", server, "GenuineIntel", 0x50654, "Roost server processor"),
        ("server-la57", server + ["la57"], "GenuineIntel", 0x606A6, "Roost server processor"),
    ]

    /// What `--cpu` takes.
    public static var names: [String] { ["host"] + table.map(\.0) }

    /// A model by name, or nil. `missing` gets the features that the host lacks to run it.
    public static func named(_ name: String, missing: inout [String]) -> CPUModel? {
        if name == "host" { return host }
        guard let row = table.first(where: { $0.0 == name }) else { return nil }
        missing = row.1.filter { feature in
            bits.contains { $0.name == feature && $0.needsHost && !hostHas($0) }
        }
        return CPUModel(name: name, names: row.1, vendor: row.2, signature: row.3, brand: row.4)
    }

    /// What the host has, as far as Roost knows it.
    public static let host: CPUModel = {
        let always: Set<String> = [
            "x2apic", "tsc_deadline_timer", "hypervisor", "pcid", "invpcid", "constant_tsc", "smap",
            "smep", "rdrand", "rdseed", "fsgsbase", "xgetbv1", "pdpe1gb", "erms", "clflushopt", "clwb", "rdtscp",
        ]
        // Waiting by MWAIT is no better than by HLT here, and costs an exit for MONITOR.
        let never: Set<String> = ["la57", "monitor"]
        let names = bits.filter { !never.contains($0.name) && (hostHas($0) || always.contains($0.name)) }.map(\.name)
        let vendor = cpuid(0, 0)
        var text: [UInt8] = []
        for register in [1, 3, 2] {
            for b in 0..<4 { text.append(UInt8(truncatingIfNeeded: vendor[register] >> UInt32(b * 8))) }
        }
        var brand: [UInt8] = []
        for leaf in 0x8000_0002...0x8000_0004 as ClosedRange<UInt32> {
            for word in cpuid(leaf, 0) {
                for b in 0..<4 { brand.append(UInt8(truncatingIfNeeded: word >> UInt32(b * 8))) }
            }
        }
        return CPUModel(
            name: "host", names: names, vendor: String(decoding: text, as: UTF8.self), signature: cpuid(1, 0)[0],
            brand: String(decoding: brand.prefix { $0 != 0 }, as: UTF8.self))
    }()

    private static func cpuid(_ leaf: UInt32, _ sub: UInt32) -> [UInt32] {
        var out: (UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0)
        roost_cpuid(leaf, sub, &out.0, &out.1, &out.2, &out.3)
        return [out.0, out.1, out.2, out.3]
    }

    private static func hostHas(_ bit: FeatureBit) -> Bool {
        let sub: UInt32 = bit.leaf == 0xD ? 1 : 0
        return cpuid(bit.leaf, sub)[bit.register] & 1 << bit.bit != 0
    }

    init(name: String, names: [String], vendor: String, signature: UInt32, brand: String) {
        self.name = name
        (featureNames, self.vendor, self.brand) = (names, vendor, brand)
        self.signature = signature
        let has = Set(names)
        var features: UInt64 = 1
        var words: [UInt32: [UInt32]] = [:]
        for bit in Self.bits where has.contains(bit.name) {
            words[bit.leaf, default: [0, 0, 0, 0]][bit.register] |= 1 << bit.bit
            if let feature = bit.feature { features |= 1 << UInt64(feature.rawValue) }
        }
        self.features = features
        efer = (has.contains("syscall") ? 1 : 0) | (has.contains("lm") ? 0x500 : 0) | (has.contains("nx") ? 0x800 : 0)
        xcr0 = (has.contains("avx") ? 7 : 3) | (has.contains("pku") ? ExtendedState.pkru : 0)
        cr4 = Self.allowedCR4(has)
        cpuid = Self.leaves(words, has, vendor: vendor, signature: signature, brand: brand, xcr0: xcr0)
    }

    private static func allowedCR4(_ has: Set<String>) -> UInt64 {
        var bits: UInt64 = 4
        let table: [(String, UInt64)] = [
            ("de", 8), ("pse", 0x10), ("pae", 0x20), ("mce", 0x40), ("pge", 0x80), ("fxsr", 0x200), ("sse", 0x400),
            ("la57", 0x1000), ("fsgsbase", 0x1_0000), ("pcid", 0x2_0000), ("xsave", 0x4_0000), ("smep", 0x10_0000),
            ("smap", 0x20_0000), ("pku", 0x40_0000),
        ]
        for (name, bit) in table where has.contains(name) { bits |= bit }
        return bits | 0x100
    }

    private static func leaves(
        _ words: [UInt32: [UInt32]], _ has: Set<String>, vendor: String, signature: UInt32, brand: String, xcr0: UInt64
    ) -> [UInt32] {
        var rows: [UInt32] = []
        func add(_ leaf: UInt32, _ sub: UInt32, _ values: [UInt32]) { rows += [leaf, sub] + values }
        func text(_ string: String, _ at: Int) -> UInt32 {
            let bytes = Array(string.utf8) + [UInt8](repeating: 0, count: 64)
            return (0..<4).reduce(0) { $0 | UInt32(bytes[at + $1]) << UInt32($1 * 8) }
        }
        let highest: UInt32 = has.contains("xsave") ? 0xD : has.contains("smep") || words[7] != nil ? 7 : 1
        add(0, ~0, [highest, text(vendor, 0), text(vendor, 8), text(vendor, 4)])
        let one = words[1] ?? [0, 0, 0, 0]
        // CLFLUSH line of 64 bytes, one logical processor.
        add(1, ~0, [signature, 0x0001_0800, one[2], one[3]])
        if has.contains("monitor") { add(5, ~0, [64, 64, 0, 0]) }
        if highest >= 7 {
            let seven = words[7] ?? [0, 0, 0, 0]
            add(7, 0, [0, seven[1], seven[2], seven[3]])
        }
        if highest >= 0xD {
            let d = words[0xD] ?? [0, 0, 0, 0]
            add(0xD, 0, [UInt32(xcr0), 576, ExtendedState.standardSize(xcr0), 0])
            add(0xD, 1, [d[0], 0, 0, 0])
            if xcr0 & 4 != 0 { add(0xD, 2, [256, 576, 0, 0]) }
            if xcr0 & ExtendedState.pkru != 0 { add(0xD, 9, [8, UInt32(ExtendedState.pkruOffset), 0, 0]) }
        }
        if has.contains("hypervisor") {
            add(0x4000_0000, ~0, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D])
            add(0x4000_0001, ~0, [1 | 8 | 1 << 24, 0, 0, 0])
        }
        if has.contains("lm") || !brand.isEmpty {
            var extended = words[0x8000_0001] ?? [0, 0, 0, 0]
            if vendor == "AuthenticAMD" { extended[3] |= one[3] & 0x0183_F3FF }
            add(0x8000_0000, ~0, [0x8000_0008, text(vendor, 0), text(vendor, 8), text(vendor, 4)])
            add(0x8000_0001, ~0, [vendor == "AuthenticAMD" ? signature : 0, 0, extended[2], extended[3]])
            for n in 0..<3 { add(0x8000_0002 + UInt32(n), ~0, (0..<4).map { text(brand, n * 16 + $0 * 4) }) }
            add(0x8000_0005, ~0, [0, 0, 0x2008_0140, 0x2008_0140])
            add(0x8000_0006, ~0, [0, 0, 0x0200_6140, 0])
            add(0x8000_0007, ~0, words[0x8000_0007] ?? [0, 0, 0, 0])
            add(0x8000_0008, ~0, [has.contains("la57") ? 0x392E : 0x302E, 0, 0, 0])
        }
        return rows
    }
}
