// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The two commands of `bpf(2)` that put a program on a cgroup.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::program::Instruction;

/// `BPF_PROG_LOAD`.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;

    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
    }
    let attributes = Attributes {
        program_type: TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of this command, and point to instructions and a string that outlive the call.
    let fd = unsafe { bpf(PROG_LOAD, &attributes)? };
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `BPF_PROG_ATTACH`.
pub(super) fn attach(cgroup: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    const PROG_ATTACH: libc::c_int = 8;
    const ATTACH_CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 1 << 1;

    #[repr(C)]
    struct Attributes {
        target: i32,
        program: i32,
        attach_type: u32,
        flags: u32,
    }
    let attributes = Attributes {
        target: cgroup.as_raw_fd(),
        program: program.as_raw_fd(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes are those of this command and hold no pointers.
    unsafe { bpf(PROG_ATTACH, &attributes).map(drop) }
}

/// `bpf(2)`.
///
/// # Safety
///
/// `attributes` are those of `command`, and what they point to outlives the call.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads no more than the size given; the caller answers for the rest.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
