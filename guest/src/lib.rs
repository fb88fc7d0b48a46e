// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Builds the guest's initramfs from the agent and a kernel's modules
