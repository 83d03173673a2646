// What to boot: finds out what a file is and loads it by its protocol.
//
//   bytes                          protocol
//   "HdrS" at 0x202                Linux bzImage, 64-bit (or 32-bit) entry
//   0x1BADB002 in the first 8 KiB  Multiboot 1
//   ELF with a Xen note 18         PVH
internal import Glibc
package import GuestMemory
internal import HostOS

/// A kernel with what is handed to it; files are read anew at each start, as a PC reads its disk.
public struct BootSource: Sendable, Codable, Equatable {
    /// Path of the kernel.
    public var kernel: String
    /// Path of the initrd; for Multiboot, modules as `FILE[ ARGUMENTS],…`.
    public var initrd: String?
    /// The kernel's command line; nil is `console=ttyS0` for Linux, nothing for others.
    public var commandLine: String?

    /// Names what to boot.
    public init(kernel: String, initrd: String? = nil, commandLine: String? = nil) {
        self.kernel = kernel
        self.initrd = initrd
        self.commandLine = commandLine
    }

    /// Loads everything into fresh RAM and tells how to enter it.
    package func load(into memory: GuestMemory) throws(BootError) -> EntryState {
        let loader = GuestLoader(memory: memory)
        let linuxLine = commandLine ?? "console=ttyS0"
        let image = try Self.readFile(kernel, as: "kernel")
        try loader.writeBIOSData()
        switch try BootProtocol.sniff(image, name: kernel) {
        case .linux:
            let header = try LinuxHeader(image, name: kernel)
            let ramdisk = try initrd.map { path throws(BootError) in try Self.readFile(path, as: "initrd") } ?? []
            return try header.load(image, initrd: ramdisk, commandLine: linuxLine, loader: loader)
        case .multiboot(let offset):
            let header = try MultibootHeader(image, at: offset, name: kernel)
            var modules: [MultibootModule] = []
            for entry in (initrd ?? "").split(separator: ",") {
                let path = String(entry.prefix { $0 != " " })
                modules.append(
                    MultibootModule(contents: try Self.readFile(path, as: "module"), commandLine: String(entry)))
            }
            let line = ([kernel] + [commandLine ?? ""].filter { !$0.isEmpty }).joined(separator: " ")
            return try header.load(image, modules: modules, commandLine: line, loader: loader)
        case .pvh(let entry):
            let ramdisk = try initrd.map { path throws(BootError) in try Self.readFile(path, as: "initrd") }
            return try PVHLoader(name: kernel, entry: entry)
                .load(image, initrd: ramdisk, commandLine: linuxLine, loader: loader)
        }
    }

    /// Reads a whole file, at most 2 GiB; anything but a regular file is refused.
    static func readFile(_ path: String, as what: String) throws(BootError) -> [UInt8] {
        do {
            return try HostFile.contents(of: path, limit: 1 << 31)
        } catch {
            throw BootError(.unreadable, "\(what) \(path): \(error.reason)")
        }
    }
}

/// The protocols, and how a file tells which it wants.
package enum BootProtocol: Equatable, Sendable {
    /// A bzImage.
    case linux
    /// A Multiboot 1 header at this offset.
    case multiboot(at: Int)
    /// An ELF file with this PVH entry.
    case pvh(entry: UInt64)

    /// Looks at the content.
    package static func sniff(_ image: [UInt8], name: String) throws(BootError) -> BootProtocol {
        if image.isEmpty { throw BootError(.truncated, "kernel \(name): the file is empty") }
        if image.little(0x202, as: UInt32.self) == 0x5372_6448, image.little(0x1FE, as: UInt16.self) == 0xAA55 {
            return .linux
        }
        if let other = otherArchitecture(image) {
            throw BootError(.otherArchitecture, "kernel \(name): built for \(other), not for x86")
        }
        if let offset = MultibootHeader.find(image) { return .multiboot(at: offset) }
        if image.starts(with: [0x7F, 0x45, 0x4C, 0x46]) {
            let elf = try ELFImage(image, name: name)
            if let entry = elf.pvhEntry(in: image) { return .pvh(entry: entry) }
            throw BootError(
                .notAKernel, "kernel \(name): an ELF file with neither a PVH note nor a Multiboot header")
        }
        if image.count < 0x264, image.starts(with: [0x4D, 0x5A]) {
            throw BootError(.truncated, "kernel \(name): truncated, only \(image.count) bytes")
        }
        if image.starts(with: [0x1F, 0x8B]) || image.starts(with: [0xFD, 0x37, 0x7A, 0x58]) {
            throw BootError(.notAKernel, "kernel \(name): a compressed file; unpack it first")
        }
        throw BootError(.notAKernel, "kernel \(name): not a Linux, PVH or Multiboot kernel")
    }

    /// The processor a recognizable image of another architecture is for.
    static func otherArchitecture(_ image: [UInt8]) -> String? {
        // Linux Image headers: "ARM\x64" and "RSC\x05" at 0x38; a zImage's magic at 0x24.
        if image.little(0x38, as: UInt32.self) == 0x644D_5241 { return "aarch64" }
        if image.little(0x38, as: UInt32.self) == 0x0543_5352 { return "riscv" }
        if image.little(0x24, as: UInt32.self) == 0x016F_2818 { return "arm" }
        if image.starts(with: [0x4D, 0x5A]), let header = image.little(0x3C, as: UInt32.self),
            image.little(Int(header), as: UInt32.self) == 0x0000_4550,
            let machine = image.little(Int(header) + 4, as: UInt16.self), machine != 0x8664, machine != 0x14C
        {
            switch machine {
            case 0xAA64: return "aarch64"
            case 0x1C0, 0x1C2, 0x1C4: return "arm"
            case 0x5032, 0x5064: return "riscv"
            case 0x6232, 0x6264: return "loongarch"
            default: return "another processor (PE machine 0x\(String(machine, radix: 16)))"
            }
        }
        if image.starts(with: [0x7F, 0x45, 0x4C, 0x46]), image.count >= 20 {
            let big = image[5] == 2
            let raw = image.little(18, as: UInt16.self) ?? 0
            let machine = big ? raw.byteSwapped : raw
            switch machine {
            case 3, 6, 62: return big ? "a big-endian processor" : nil
            case 183: return "aarch64"
            case 40: return "arm"
            case 243: return "riscv"
            case 8: return "mips"
            case 20: return "powerpc"
            case 21: return "powerpc64"
            case 22: return "s390"
            case 2, 18, 43: return "sparc"
            case 258: return "loongarch"
            case 50: return "ia64"
            default: return "another processor (ELF machine \(machine))"
            }
        }
        return nil
    }
}
