// What is told of a block that has just been translated: for names in perf, and for traces.
internal import CHost
internal import HostOS

/// A translated block: where it came from and where its code is.
public struct TranslatedBlock {
    /// RIP of its first instruction when it was translated; other processes may run the same code elsewhere.
    public let rip: UInt64
    /// The default size of its code: 2, 4 or 8.
    public let codeSize: UInt8
    /// Real or virtual-8086 mode.
    public let isReal: Bool
    /// It runs at CPL 3.
    public let isUser: Bool
    /// The guest's bytes.
    public let guest: [UInt8]
    /// Address of the host's code.
    public let address: UInt64
    /// The host's code, to be read before the next block is translated.
    public let code: UnsafeRawBufferPointer
    /// Where in it each instruction's code begins, and where the last one's ends; slow paths follow.
    public let marks: [Int]
}

extension VCPU {
    /// Tells the observer of a block whose code has just been written, `length` bytes of it.
    func report(_ block: UnsafeMutablePointer<Block>, _ translator: BlockTranslator, rip: UInt64, length count: Int) {
        let cache = translations
        let physical = Int(block.pointee.physical)
        let length = Int(block.pointee.byteLength)
        let head = min(length, 4096 - physical & 4095)
        var guest = [UInt8](UnsafeRawBufferPointer(start: s.pointee.ram + physical, count: head))
        let next = s.pointee.ram + Int(block.pointee.secondPage << 12)
        guest += UnsafeRawBufferPointer(start: next, count: length - head)
        cache.pointee.observer?(
            TranslatedBlock(
                rip: rip, codeSize: s.pointee.code_size, isReal: s.pointee.mode_key & ModeKey.real != 0,
                isUser: s.pointee.cpl == 3, guest: guest,
                address: UInt64(UInt(bitPattern: cache.pointee.memory.executable + translator.origin)),
                code: UnsafeRawBufferPointer(
                    start: cache.pointee.memory.writable + translator.origin, count: count),
                marks: translator.marks ?? []))
    }
}
