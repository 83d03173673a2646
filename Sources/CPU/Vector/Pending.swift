// Vector and x87 instructions are not there yet: #UD.
extension VCPU {
    func executeVector(_ i: UnsafePointer<Instruction>) throws(CPUException) { throw .invalidOpcode }
}
