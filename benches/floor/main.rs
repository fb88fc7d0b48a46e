// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The floor: the least a program can do to boot a PVH kernel on KVM.
//!
//! The yardstick for start-up cost: memory, one vCPU, the interrupt controllers in the kernel, a
//! serial port that only writes, and a reset port that ends the program. No virtio, no threads, no
//! sandbox, no configuration, and none of the workspace's crates, so that it cannot share a cost
//! with what it measures. It trusts its input: never run a guest in it that you do not.
//!
//! `floor KERNEL INITRD|- MEMORY_MIB COMMAND_LINE`

mod acpi;
mod kernel;
mod memory;

use std::fs::File;
use std::io::{Error, Write};

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, kvm_dtable, kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use memory::Memory;

/// Where the guest's page of start information is; its tables and command line follow.
const START_INFO: u64 = 0x6000;
const COMMAND_LINE: u64 = 0x7000;
const ACPI_TABLES: u64 = 0xe_0000;

const SERIAL_DATA: u16 = 0x3f8;
const SERIAL_LINE_STATUS: u16 = 0x3fd;
/// Transmitter empty, holding register empty.
const SERIAL_READY: u8 = 0x60;
const KEYBOARD_COMMAND: u16 = 0x64;
const KEYBOARD_RESET: u8 = 0xfe;
const CLOCK_DATA: u16 = 0x71;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(initrd), Some(memory), Some(command_line)) = (
        arguments.next(),
        arguments.next(),
        arguments.next(),
        arguments.next(),
    ) else {
        eprintln!("usage: floor KERNEL INITRD|- MEMORY_MIB COMMAND_LINE");
        std::process::exit(2);
    };
    if let Err(error) = run(&kernel, &initrd, &memory, &command_line) {
        eprintln!("floor: {error}");
        std::process::exit(1);
    }
}

fn run(kernel: &str, initrd: &str, mib: &str, command_line: &str) -> Result<(), Error> {
    let mib: usize = mib.parse().map_err(Error::other)?;
    let memory = Memory::new(mib << 20)?;
    let entry = kernel::load(&memory, &File::open(kernel)?)?;
    let module = match initrd {
        "-" => None,
        path => Some(kernel::load_initrd(&memory, &File::open(path)?)?),
    };
    memory.write(COMMAND_LINE, command_line.as_bytes());
    let rsdp = acpi::write(&memory, ACPI_TABLES);
    kernel::write_start_info(&memory, START_INFO, COMMAND_LINE, rsdp, module);

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    // The first memory slot before the interrupt controllers: the other order waits for RCU.
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: memory.len() as u64,
        userspace_addr: memory.address() as u64,
        flags: 0,
    };
    // SAFETY: the mapping lives as long as the program.
    unsafe { vm.set_user_memory_region(slot) }?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    let mut vcpu = vm.create_vcpu(0)?;
    set_cpuid(&kvm, &vcpu)?;
    set_registers(&vcpu, entry)?;
    run_until_reset(&mut vcpu)
}

fn set_cpuid(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), Error> {
    let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            // One processor with APIC id 0, under a hypervisor, with the APIC timer's TSC deadline.
            1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (1 << 16);
                entry.ecx |= (1 << 31) | (1 << 24);
            }
            0xb | 0x1f => entry.edx = 0,
            _ => {}
        }
    }
    Ok(vcpu.set_cpuid2(&cpuid)?)
}

/// The state that a PVH kernel starts in: 32-bit protected mode, flat segments, no paging.
fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), Error> {
    let mut special = vcpu.get_sregs()?;
    let flat = |kind: u8, selector: u16| kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        ..Default::default()
    };
    special.cs = flat(0xb, 0x8);
    let data = flat(0x3, 0x10);
    (special.ds, special.es, special.fs, special.gs, special.ss) = (data, data, data, data, data);
    special.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    special.gdt = kvm_dtable::default();
    special.idt = kvm_dtable::default();
    special.cr0 = 1;
    special.cr4 = 0;
    vcpu.set_sregs(&special)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rbx: START_INFO,
        rflags: 2,
        ..Default::default()
    })?;
    Ok(())
}

fn run_until_reset(vcpu: &mut VcpuFd) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(SERIAL_DATA, data)) => {
                out.write_all(data)?;
                out.flush()?;
            }
            Ok(VcpuExit::IoOut(KEYBOARD_COMMAND, [KEYBOARD_RESET])) => return Ok(()),
            Ok(VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::IoIn(port, data)) => data.fill(match port {
                SERIAL_LINE_STATUS => SERIAL_READY,
                CLOCK_DATA => 0,
                _ => 0xff,
            }),
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(exit) => return Err(Error::other(format!("the guest ended with {exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(error.into()),
        }
    }
}
