// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine of KVM: memory slots, interrupt controllers, interrupt lines and kicks.
//!
//! The order of the calls decides what they cost. Once there is an interrupt controller or an ioeventfd, each change of
//! a memory slot waits for a grace period of the kernel, eight milliseconds on an idle host; so [`Machine::new`] sets
//! all memory slots first.

use coracle_memory::GuestMemory;
use coracle_virtio::NOTIFY_OFFSET;
use kvm_bindings::{KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// Where Intel's hosts keep three pages for running real mode: below the BIOS's old place, in the hole of the RAM.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// A refusal of KVM.
#[derive(Debug, Error)]
#[error("KVM cannot {action}")]
pub struct KvmError {
    /// What it was asked to do.
    pub action: String,
    /// Its reason.
    pub source: errno::Error,
}

/// Gives KVM's error the name of what was asked for.
pub(crate) fn failed_to(action: impl Into<String>) -> impl FnOnce(errno::Error) -> KvmError {
    move |source| KvmError {
        action: action.into(),
        source,
    }
}

/// A virtual machine without vCPUs, and the memory that it is made of.
#[derive(Debug)]
pub(crate) struct Machine {
    // Before the memory, so that the slots are gone when the memory is unmapped.
    vm: VmFd,
    memory: GuestMemory,
}

impl Machine {
    /// A machine with `memory`, a PIC and an IOAPIC.
    pub(crate) fn new(kvm: &Kvm, memory: GuestMemory) -> Result<Self, KvmError> {
        let vm = kvm
            .create_vm()
            .map_err(failed_to("create a virtual machine"))?;
        let machine = Self { vm, memory };
        machine.set_memory_slots()?;
        machine
            .vm
            .set_tss_address(TSS_ADDRESS)
            .map_err(failed_to("set the TSS address"))?;
        machine
            .vm
            .create_irq_chip()
            .map_err(failed_to("create the interrupt controllers"))?;
        Ok(machine)
    }

    fn set_memory_slots(&self) -> Result<(), KvmError> {
        for (slot, region) in (0..).zip(self.memory.regions()) {
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start().0,
                memory_size: region.len(),
                userspace_addr: region.host_address() as u64,
            };
            // SAFETY: the regions of guest memory are mapped and do not overlap, and `self.memory` keeps them
            // mapped for longer than the virtual machine exists.
            unsafe { self.vm.set_user_memory_region(slot) }
                .map_err(failed_to("set a memory slot"))?;
        }
        Ok(())
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Raises the global system interrupt `gsi` whenever `line` is written to.
    pub(crate) fn add_interrupt(&self, line: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.vm
            .register_irqfd(line, gsi)
            .map_err(failed_to(format!("add interrupt {gsi}")))
    }

    /// Writes to `kick` whenever a driver names the queue `index` to the transport at `window`, without an exit to
    /// this process.
    pub(crate) fn add_kick(&self, kick: &EventFd, window: u64, index: u32) -> Result<(), KvmError> {
        self.vm
            .register_ioevent(kick, &IoEventAddress::Mmio(window + NOTIFY_OFFSET), index)
            .map_err(failed_to(format!(
                "add the kick of queue {index} of the device at {window:#x}"
            )))
    }

    /// Whether KVM can keep interrupts from a vCPU that makes a single step.
    pub(crate) fn blocks_interrupts(&self) -> bool {
        let flags = self.vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
        flags.cast_unsigned() & KVM_GUESTDBG_BLOCKIRQ != 0
    }

    pub(crate) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, KvmError> {
        self.vm
            .create_vcpu(index.into())
            .map_err(failed_to(format!("create vCPU {index}")))
    }
}
