// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The few model-specific registers that a kernel expects firmware to have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::KvmError;
use crate::machine::failed_to;

/// `IA32_MISC_ENABLE`: fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: the ranges are enabled, and all memory is write-back. Without it Linux would map its
/// memory as uncached.
const MTRR_DEFAULT_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Sets them.
pub(super) fn set(fd: &VcpuFd) -> Result<(), KvmError> {
    let entries = [MISC_ENABLE, MTRR_DEFAULT_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let failed = |errno| KvmError {
        action: "set the model-specific registers".to_owned(),
        source: errno::Error::new(errno),
    };
    let msrs = Msrs::from_entries(&entries).map_err(|_| failed(libc::E2BIG))?;
    let count = fd
        .set_msrs(&msrs)
        .map_err(failed_to("set the model-specific registers"))?;
    // KVM stops at the first register that it does not take.
    match entries.get(count) {
        Some(entry) => Err(KvmError {
            action: format!("set the model-specific register {:#x}", entry.index),
            source: errno::Error::new(libc::EINVAL),
        }),
        None => Ok(()),
    }
}
