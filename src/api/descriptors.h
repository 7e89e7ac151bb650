// Descriptors that a child of ours must not keep.
#pragma once

namespace spile::api {

/// Closes every descriptor of the calling process from `first` on. System calls only, so that a
/// vfork child may do it.
void close_from(int first);

/// The same where the kernel has no close_range(2) (before 5.9): by /proc/self/fd, without /proc by
/// trying all numbers that may be.
void close_listed_from(int first);

}  // namespace spile::api
