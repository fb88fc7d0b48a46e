// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The transport, register by register, in every state of the life cycle.

mod accesses;
mod bench;
mod life_cycle;
mod random;
mod registers;
