// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

#![doc = include_str!("../README.md")]

#[cfg(not(target_arch = "x86_64"))]
compile_error!("only x86-64 hosts and guests are supported");

mod bus;
mod config;
mod control;
mod devices;
mod dump;
mod ending;
mod event_loop;
mod exit;
mod filters;
mod gdb;
mod jail;
mod machine;
mod network;
mod paging;
pub mod role;
mod sentence;
mod vcpu;
mod vm;

pub use config::{Config, ConfigError, Disk, Net, Share, VHOST_USER_UID, VhostUser, Vsock};
pub use devices::{DeviceError, DiskSetupError};
pub use event_loop::EventLoopError;
pub use exit::{Exit, Fault};
pub use filters::{FilterError, Filters, TooLong, VIOLATION_STATUS};
pub use jail::{Jail, JailError, Root};
pub use machine::KvmError;
pub use network::EmptyNetwork;
pub use vcpu::{Activity, Mode, VcpuError, VcpuState};
pub use vm::{RunningVm, Stopper, Vm, VmError};
