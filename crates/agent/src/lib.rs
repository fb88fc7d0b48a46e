// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! PID 1 of the guest: makes and watches containers
