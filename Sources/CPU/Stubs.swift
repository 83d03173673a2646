extension VCPU {
    func executeVector(_ i: UnsafePointer<Instruction>) throws(CPUException) { throw .invalidOpcode }
}
