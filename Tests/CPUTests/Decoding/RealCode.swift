// Code that compilers made, for the decoder: executable sections of ELF files, and Debian's kernel where it is at hand.
import Foundation
import Testing

enum RealCode {
    /// Programs that are on every machine that builds Roost, and the modules of the kernels that `make kernels` fetches.
    private static var files: [String] {
        let environment = ProcessInfo.processInfo.environment
        let home = environment["HOME"] ?? NSHomeDirectory()
        let kernels = (environment["XDG_CACHE_HOME"] ?? home + "/.cache") + "/roost/kernels/standard/lib/modules"
        let modules = FileManager.default.enumerator(atPath: kernels)?.compactMap { $0 as? String } ?? []
        let largest = ["ext4.ko", "virtio_net.ko", "aesni-intel.ko", "chacha-x86_64.ko"]
        return ["/bin/busybox", "/lib/x86_64-linux-gnu/libc.so.6", "/lib/x86_64-linux-gnu/libm.so.6"]
            + modules.filter { path in largest.contains { path.hasSuffix($0) } }.map { kernels + "/" + $0 }
    }

    /// The executable sections of these files, at most `limit` bytes of each.
    static func sections(limit: Int) throws -> [[UInt8]] {
        var result: [[UInt8]] = []
        for path in files {
            guard let file = FileManager.default.contents(atPath: path) else { continue }
            result += executableSections([UInt8](file)).map { Array($0.prefix(limit)) }
        }
        try #require(result.reduce(0) { $0 + $1.count } > 1 << 19, "no programs to read")
        return result
    }

    /// The sections of a 64-bit ELF file that hold code (SHF_EXECINSTR).
    private static func executableSections(_ file: [UInt8]) -> [[UInt8]] {
        func number(_ at: Int, _ count: Int) -> Int {
            guard at >= 0, at + count <= file.count else { return 0 }
            return (0..<count).reduce(0) { $0 | Int(file[at + $1]) << (8 * $1) }
        }
        guard file.starts(with: [0x7F, 0x45, 0x4C, 0x46, 2]) else { return [] }
        let (table, size, count) = (number(0x28, 8), number(0x3A, 2), number(0x3C, 2))
        return (0..<count).compactMap { n in
            let header = table + n * size
            guard number(header + 4, 4) == 1, number(header + 8, 8) & 4 != 0 else { return nil }
            let (start, length) = (number(header + 24, 8), number(header + 32, 8))
            guard start + length <= file.count else { return nil }
            return Array(file[start..<start + length])
        }
    }
}
