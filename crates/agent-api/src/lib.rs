// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host and the guest agent say to each other (ttrpc over vsock)
