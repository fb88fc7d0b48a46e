// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels that come compressed: the ELF kernel out of a bzImage ([`vmlinuz`]), and the decoders for it
//! ([`compression`]), which read a distribution's kernel modules as well.
//!
//! A kernel is unpacked in memory at each start. Whoever starts it often unpacks it once, into a file whose pages all
//! starts share.

pub mod compression;
pub mod vmlinuz;
