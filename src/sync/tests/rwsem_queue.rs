// SPDX-License-Identifier: GPL-2.0-only
//! L5 to L7 of the reference: the queue of an rwsem, made by hand so that every step is known.
