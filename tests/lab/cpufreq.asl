// Three performance states for each of the two processors of QEMU's q35 machine, so that the guest's
// acpi-cpufreq driver has something to drive. Control and status register share one I/O port, which is plain
// scratch memory of QEMU's pc-testdev device: what was asked for is what is read back.
//
// After a change: iasl cpufreq.asl && base64 --wrap=100 cpufreq.aml, and paste into CPUFREQ in disk.py.
DefinitionBlock ("", "SSDT", 2, "LUMLAB", "PSTATES", 1)
{
    External (\_SB.CPUS.C000, DeviceObj)
    External (\_SB.CPUS.C001, DeviceObj)

    Method (\PORT, 0, Serialized)
    {
        Return (Package () {
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE0) },
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE0) }
        })
    }

    // MHz, milliwatts, two latencies in microseconds, value to write, value to read
    Method (\STEP, 0, Serialized)
    {
        Return (Package () {
            Package () { 2400, 24000, 20, 20, 0x10, 0x10 },
            Package () { 1600, 16000, 20, 20, 0x11, 0x11 },
            Package () { 800, 8000, 20, 20, 0x12, 0x12 }
        })
    }

    Scope (\_SB.CPUS.C000)
    {
        Method (_PCT) { Return (\PORT ()) }
        Method (_PSS) { Return (\STEP ()) }
        Method (_PPC) { Return (Zero) }
    }

    Scope (\_SB.CPUS.C001)
    {
        Method (_PCT) { Return (\PORT ()) }
        Method (_PSS) { Return (\STEP ()) }
        Method (_PPC) { Return (Zero) }
    }
}
