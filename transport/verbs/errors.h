#pragma once
// What went wrong with a device, a driver or a peer, in words that say what to do next.

#include <cstddef>
#include <string>
#include <string_view>

#include "common/result.h"
#include "transport/work.h"

struct ibv_wc;

namespace rbt::transport::verbs {

/// Why there is no RDMA here, found by looking at `sysfs` and `devices` (see Options). `error_number` is what the
/// library said.
[[nodiscard]] Error explain_no_rdma(int error_number, const std::string& sysfs, const std::string& devices);

/// A failed call on a device: ibv_create_cq on rxe0, …
[[nodiscard]] Error call_failed(int error_number, std::string_view call, std::string_view device);

/// ibv_reg_mr of `bytes` on `device`.
[[nodiscard]] Error registration_failed(int error_number, std::size_t bytes, std::string_view device);

/// rdma_bind_addr or rdma_listen at `address`. `present`: "rxe1 (10.99.0.1)", for who tries the wrong one.
[[nodiscard]] Error listen_failed(int error_number, std::string_view call, const std::string& address, bool loopback,
                                  const std::string& present);

/// Resolving the way to `address`.
[[nodiscard]] Error resolve_failed(int error_number, std::string_view call, const std::string& address, bool loopback,
                                   const std::string& present);

/// The IB CM's reason for a REJ (IBA Vol. 1, 12.6.7.2), in words.
[[nodiscard]] std::string_view reject_reason(int status) noexcept;
/// The peer is there, but nobody listens (invalid service id), or it said no (consumer reject).
inline constexpr int kRejectNobodyListens = 8;
inline constexpr int kRejectStale = 10;
inline constexpr int kRejectConsumer = 28;

/// A work completion's status in the seam's words.
[[nodiscard]] CompletionStatus status_of(const ibv_wc& completion) noexcept;

}  // namespace rbt::transport::verbs
