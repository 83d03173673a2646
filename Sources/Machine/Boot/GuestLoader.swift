// Puts images into guest RAM, with errors in the user's words.
package import GuestMemory

/// Checked placement of kernels and modules.
package struct GuestLoader {
    /// The guest's memory.
    let memory: GuestMemory

    /// Loads into a machine's memory.
    package init(memory: GuestMemory) { self.memory = memory }

    /// End of RAM below the PCI hole.
    var lowEnd: UInt64 { memory.lowSize }

    /// Bytes of RAM that there are from the start.
    var ramSize: UInt64 { memory.bootSize }

    /// Writes bytes; `what` names them in the error.
    func write(_ bytes: [UInt8], at address: UInt64, _ what: String, code: BootError.Code = .tooLarge)
        throws(BootError)
    {
        do {
            try memory.write(bytes, at: GuestPhysicalAddress(address))
        } catch {
            throw BootError(
                code,
                "\(what) needs \(sizeInWords(UInt64(bytes.count))) at 0x\(String(address, radix: 16)); "
                    + "the guest has \(sizeInWords(ramSize)) of memory")
        }
    }

    /// Fails unless all of a range is RAM.
    func require(_ address: UInt64, _ length: UInt64, _ what: String) throws(BootError) {
        guard length <= ramSize, memory.isRAM(GuestPhysicalAddress(address), length: Int(length)) else {
            throw BootError(
                .tooLarge,
                "\(what) needs \(sizeInWords(length)) at 0x\(String(address, radix: 16)); "
                    + "the guest has \(sizeInWords(ramSize)) of memory")
        }
    }

    /// The few words of the BIOS data area that systems look at: where the EBDA is and how much memory lies below it.
    func writeBIOSData() throws(BootError) {
        var area: [UInt8] = []
        area.append(little: UInt16(BoardLayout.extendedBIOSData >> 4))
        try write(area, at: 0x40E, "the BIOS data area")
        try write([0x7F, 0x02], at: 0x413, "the BIOS data area")
    }

    /// Writes a descriptor table at 0x500.
    func writeGDT(_ descriptors: [UInt64]) throws(BootError) -> (base: UInt64, limit: UInt16) {
        var table: [UInt8] = []
        for descriptor in descriptors { table.append(little: descriptor) }
        try write(table, at: 0x500, "the descriptor table")
        return (0x500, UInt16(table.count - 1))
    }

    /// Maps the first 4 GiB to themselves with 2 MiB pages; the tables stand at 0x9000 to 0xEFFF.
    func writeIdentityMap() throws(BootError) -> UInt64 {
        let top: UInt64 = 0x9000
        var tables = [UInt8](repeating: 0, count: 6 * 4096)
        tables.put(little: (top + 0x1000) | 3, at: 0)
        for gibibyte in 0..<UInt64(4) {
            tables.put(little: (top + 0x2000 + gibibyte * 0x1000) | 3, at: 0x1000 + Int(gibibyte) * 8)
        }
        for page in 0..<UInt64(2048) { tables.put(little: page << 21 | 0x83, at: 0x2000 + Int(page) * 8) }
        try write(tables, at: top, "the page tables")
        return top
    }
}
