// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A software-emulated KVM host for machines without hardware virtualisation
