// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong with a boot as a whole.

use coracle_memory::AccessError;
use thiserror::Error;

use crate::layout::CMDLINE_MAX;
use crate::{AcpiError, InitrdError, KernelError};

/// Why a machine cannot boot.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel is not usable.
    #[error("the kernel cannot be loaded")]
    Kernel(#[source] KernelError),
    /// The initrd is not usable.
    #[error("the initrd cannot be loaded")]
    Initrd(#[source] InitrdError),
    /// The machine cannot be described.
    #[error("the ACPI tables cannot be written")]
    Acpi(#[source] AcpiError),
    /// The command line does not fit what Linux keeps of it.
    #[error("the kernel's command line has {length} bytes, more than the {max} that Linux takes", max = CMDLINE_MAX)]
    CmdlineTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A NUL would end the command line early.
    #[error("the kernel's command line holds a NUL at byte {position}")]
    CmdlineNul {
        /// Where the first one is.
        position: usize,
    },
    /// The lowest mebibyte is not there to write to.
    #[error("{what} cannot be written to guest memory")]
    Write {
        /// What was to be written.
        what: &'static str,
        /// The reason.
        source: AccessError,
    },
}
