// A processor's registers in words, a look at the guest's memory without side effects.
internal import CHost
internal import CPU
internal import GuestMemory

/// Reads a stopped vCPU. Nothing here changes it or the guest's memory.
struct ProcessorReport {
    let vcpu: VCPU
    let memory: GuestMemory

    private func hex(_ value: UInt64, _ digits: Int = 16) -> String {
        let text = String(value, radix: 16)
        return String(repeating: "0", count: max(0, digits - text.count)) + text
    }

    // SAFETY of all `unsafe` below: the state block outlives the vCPU handle, and its thread is the caller or stopped.

    var rip: UInt64 { unsafe vcpu.s.pointee.rip }

    /// Address of the next instruction, as paging sees it.
    var linearRIP: UInt64 {
        unsafe (vcpu.segment(Int(ROOST_CS)).pointee.base &+ rip) & (vcpu.s.pointee.code_size == 8 ? ~0 : 0xFFFF_FFFF)
    }

    /// All registers.
    var registers: String {
        let names = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ]
        var lines: [String] = []
        for row in 0..<4 {
            lines.append(
                (0..<4).map { column in
                    let n = row * 4 + column
                    return unsafe names[n] + " " + hex(vcpu.gpr[n])
                }.joined(separator: "  "))
        }
        let state = unsafe vcpu.s
        unsafe lines.append("rip \(hex(state.pointee.rip))  rflags \(hex(vcpu.rflags, 8))  cpl \(state.pointee.cpl)")
        unsafe lines.append(
            "cr0 \(hex(state.pointee.cr0, 8))  cr2 \(hex(state.pointee.cr2))  cr3 \(hex(state.pointee.cr3))  "
                + "cr4 \(hex(state.pointee.cr4, 8))  efer \(hex(state.pointee.efer, 4))")
        for (n, name) in ["es", "cs", "ss", "ds", "fs", "gs", "ldtr", "tr"].enumerated() {
            let segment = unsafe vcpu.segment(n).pointee
            lines.append(
                "\(name)\(String(repeating: " ", count: 5 - name.count))\(hex(UInt64(segment.selector), 4))  "
                    + "base \(hex(segment.base))  limit \(hex(UInt64(segment.limit), 8))  "
                    + "attributes \(hex(UInt64(segment.attributes), 4))")
        }
        unsafe lines.append(
            "gdtr base \(hex(state.pointee.gdtr_base)) limit \(hex(UInt64(state.pointee.gdtr_limit), 4))  "
                + "idtr base \(hex(state.pointee.idtr_base)) limit \(hex(UInt64(state.pointee.idtr_limit), 4))")
        return lines.joined(separator: "\n")
    }

    /// The guest-physical address behind a linear one, without touching accessed bits.
    ///
    /// - Spec: SDM 3A 4.3 to 4.5.
    func translate(_ linear: UInt64) -> UInt64? {
        let (cr0, cr3, cr4, efer) = unsafe (
            vcpu.s.pointee.cr0, vcpu.s.pointee.cr3, vcpu.s.pointee.cr4, vcpu.s.pointee.efer
        )
        guard cr0 >> 31 & 1 != 0 else { return linear & 0xFFFF_FFFF }
        func entry(_ address: UInt64) -> UInt64? {
            guard let value = try? memory.load(GuestPhysicalAddress(address), as: UInt64.self), value & 1 != 0 else {
                return nil
            }
            return value
        }
        let frame: UInt64 = 0x000F_FFFF_FFFF_F000
        if cr4 & 0x20 == 0 {
            func word(_ address: UInt64) -> UInt64? {
                guard let value = try? memory.load(GuestPhysicalAddress(address), as: UInt32.self), value & 1 != 0
                else {
                    return nil
                }
                return UInt64(value)
            }
            guard let top = word((cr3 & 0xFFFF_F000) | (linear >> 22 & 0x3FF) << 2) else { return nil }
            if top & 0x80 != 0, cr4 & 0x10 != 0 { return (top & 0xFFC0_0000) | (linear & 0x3F_FFFF) }
            guard let leaf = word((top & 0xFFFF_F000) | (linear >> 12 & 0x3FF) << 2) else { return nil }
            return (leaf & 0xFFFF_F000) | (linear & 0xFFF)
        }
        let isLong = efer & 0x400 != 0
        var table = isLong ? cr3 & frame : cr3 & 0xFFFF_FFE0
        var level: UInt64 = isLong ? (cr4 & 0x1000 != 0 ? 5 : 4) : 3
        while true {
            let shift = 12 + 9 * (level - 1)
            let index = !isLong && level == 3 ? linear >> 30 & 3 : linear >> shift & 0x1FF
            guard let value = entry(table | index << 3) else { return nil }
            if level == 1 || (level <= 3 && value & 0x80 != 0 && (isLong || level == 2)) {
                let offset = (UInt64(1) << shift) - 1
                return (value & frame & ~offset) | (linear & offset)
            }
            table = value & frame
            level -= 1
        }
    }

    /// Up to `count` bytes from a linear address, fewer where the guest has nothing mapped.
    func bytes(at linear: UInt64, count: Int) -> [UInt8] {
        var result: [UInt8] = []
        for offset in 0..<UInt64(count) {
            guard let physical = translate(linear &+ offset),
                let byte = try? memory.load(GuestPhysicalAddress(physical), as: UInt8.self)
            else { break }
            result.append(byte)
        }
        return result
    }

    /// The instruction at the start of some bytes, in Intel's notation.
    func disassemble(_ bytes: [UInt8], at address: UInt64) -> (text: String, length: Int)? {
        let (size, isProtected) = unsafe (vcpu.s.pointee.code_size, vcpu.s.pointee.protected_mode != 0)
        return Disassembler(codeSize: size, isReal: !isProtected).instruction(bytes[...], at: address)
    }

    /// The next instructions as lines of address, bytes and text.
    func listing(count: Int) -> [String] {
        var lines: [String] = []
        var code = bytes(at: linearRIP, count: 15 * count)
        var address = rip
        if code.isEmpty { return ["\(hex(address))  (not mapped)"] }
        for _ in 0..<count where !code.isEmpty {
            guard let (text, length) = disassemble(code, at: address) else {
                lines.append(
                    "\(hex(address))  \(code.prefix(15).map { hex(UInt64($0), 2) }.joined(separator: " "))  (invalid)")
                break
            }
            let raw = code.prefix(length).map { hex(UInt64($0), 2) }.joined(separator: " ")
            lines.append("\(hex(address))  \(raw)\(String(repeating: " ", count: max(1, 32 - raw.count)))\(text)")
            code.removeFirst(min(length, code.count))
            address = address &+ UInt64(length)
        }
        return lines
    }
}
