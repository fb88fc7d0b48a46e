// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What makes a guest this sandbox and no other: its name, its clock, its randomness, its share and its network.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;

use coracle_agent_api::messages::CreateSandboxRequest;
use coracle_agent_api::{AgentError, ErrorKind, SHARE_PATH};
use rustix::mount::MountFlags;
use rustix::time::{ClockId, Timespec};

use crate::{chain, modules, network};

/// `__NEW_UTS_LEN` of the kernel.
const HOSTNAME_MAX: usize = 64;

/// How many random bytes the kernel's pool can be given at once.
const ENTROPY_MAX: usize = 512;

const NANOSECONDS: u64 = 1_000_000_000;

/// Gives the guest what `request` says.
///
/// # Errors
///
/// The request makes no sense, or the kernel refuses one of its parts.
pub fn create(request: &CreateSandboxRequest) -> Result<(), AgentError> {
    check(request)?;
    let failed = |what: &str, error: io::Error| {
        AgentError::new(ErrorKind::Internal, format!("cannot {what}: {error}"))
    };
    if !request.hostname.is_empty() {
        rustix::system::sethostname(request.hostname.as_bytes())
            .map_err(|error| failed("set the host name", error.into()))?;
    }
    if !request.entropy.is_empty() {
        add_entropy(&request.entropy).map_err(|error| failed("add entropy", error))?;
    }
    if request.clock_nanoseconds != 0 {
        set_clock(request.clock_nanoseconds).map_err(|error| failed("set the clock", error))?;
    }
    if !request.share_tag.is_empty() {
        mount_share(&request.share_tag).map_err(|error| {
            AgentError::new(
                ErrorKind::Mount,
                format!(
                    "cannot mount the share {} on {SHARE_PATH}: {error}",
                    request.share_tag
                ),
            )
        })?;
    }
    modules::use_share().map_err(|error| {
        let message = format!("cannot use the modules of the share: {}", chain(&error));
        AgentError::new(ErrorKind::Internal, message)
    })?;
    network::set_up(&request.interfaces, &request.routes, &request.neighbours)
}

fn check(request: &CreateSandboxRequest) -> Result<(), AgentError> {
    let invalid = |message: String| Err(AgentError::new(ErrorKind::InvalidRequest, message));
    if request.hostname.len() > HOSTNAME_MAX || request.hostname.contains('\0') {
        return invalid(format!(
            "a host name of {} bytes: at most {HOSTNAME_MAX} and no NUL",
            request.hostname.len()
        ));
    }
    if request.entropy.len() > ENTROPY_MAX {
        return invalid(format!(
            "{} bytes of entropy: at most {ENTROPY_MAX}",
            request.entropy.len()
        ));
    }
    if i64::try_from(request.clock_nanoseconds).is_err() {
        return invalid(format!("a clock of {} ns", request.clock_nanoseconds));
    }
    Ok(())
}

/// Mixes `entropy` into the kernel's pool, credits all of it, and has the generator use it at once: two guests that
/// began as one must part here.
fn add_entropy(entropy: &[u8]) -> io::Result<()> {
    const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
    const RESEED: libc::Ioctl = 0x5207;

    /// `struct rand_pool_info`, with room for all that may come.
    #[repr(C)]
    struct Pool {
        bits: libc::c_int,
        size: libc::c_int,
        buffer: [u8; ENTROPY_MAX],
    }
    let mut pool = Pool {
        bits: 0,
        size: 0,
        buffer: [0; ENTROPY_MAX],
    };
    for (to, from) in pool.buffer.iter_mut().zip(entropy) {
        *to = *from;
        pool.size += 1;
        pool.bits += 8;
    }
    let random = File::options().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads the structure and as much of its buffer as it says, which is no more than there is.
    check_ioctl(unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, &raw const pool) })?;
    // SAFETY: this request has no argument.
    check_ioctl(unsafe { libc::ioctl(random.as_raw_fd(), RESEED) })
}

fn check_ioctl(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn set_clock(nanoseconds: u64) -> io::Result<()> {
    let split = |value: u64| i64::try_from(value).map_err(|_| io::ErrorKind::InvalidInput);
    let time = Timespec {
        tv_sec: split(nanoseconds / NANOSECONDS)?,
        tv_nsec: split(nanoseconds % NANOSECONDS)?,
    };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

fn mount_share(tag: &str) -> io::Result<()> {
    fs::create_dir_all(SHARE_PATH)?;
    // Set-user-id programs and the like are the image's business; its container's mounts say what they allow.
    rustix::mount::mount(tag, SHARE_PATH, "virtiofs", MountFlags::empty(), None)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::long_name(
        CreateSandboxRequest { hostname: "x".repeat(65), ..Default::default() },
        "a host name of 65 bytes: at most 64 and no NUL"
    )]
    #[case::entropy(
        CreateSandboxRequest { entropy: vec![0; 513], ..Default::default() },
        "513 bytes of entropy: at most 512"
    )]
    #[case::clock(
        CreateSandboxRequest { clock_nanoseconds: u64::MAX, ..Default::default() },
        "a clock of 18446744073709551615 ns"
    )]
    fn request_that_makes_no_sense_is_refused(
        #[case] request: CreateSandboxRequest,
        #[case] message: &str,
    ) {
        let error = create(&request).unwrap_err();

        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::InvalidRequest, message)
        );
    }

    #[test]
    fn empty_request_changes_nothing() {
        create(&CreateSandboxRequest::default()).unwrap();
    }
}
