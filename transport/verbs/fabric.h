#pragma once
// The verbs fabric: real RDMA devices (and rdma_rxe) through librdmacm and libibverbs. Nothing of theirs shows here.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "common/log.h"
#include "transport/fabric.h"

namespace rbt::transport::verbs {

class Devices;

struct Options {
  std::uint32_t inline_max = 64;  ///< bytes wished for copy_data: a command or a response; devices may give less
  /// RDMA READs of one connection in either direction, at most; the device and the peer may allow less. 1 to 255.
  std::uint32_t read_depth_max = 128;
  /// Where the kernel shows RDMA devices and their character devices: looked at only to explain a failure.
  std::string sysfs = "/sys/class/infiniband";
  std::string devices = "/dev/infiniband";
};

/// One per process is enough, and device events (ports, addresses) are heard by one only: librdmacm opens a device once
/// per process. Its poll groups may live on any number of reactors. Thread-safe.
///
/// What differs from the seam's general words:
///  * limits() and domain() of a connection made by connect() are valid from on_established() on: which device leads to
///    the peer is known only then.
///  * A host name in a Uri is looked up with getaddrinfo(3) on the calling thread; addresses are not.
///  * A peer that is killed is `peer_closed`: its kernel disconnects for it. A machine that dies is noticed by the next
///    request that it does not acknowledge (`retry_exceeded`), never while idle.
class Fabric final : public transport::Fabric {
 public:
  /// Errors: `not_found`, `permission`, `unsupported`: no device, driver or right to use it, and what to do about it.
  [[nodiscard]] static Result<std::unique_ptr<Fabric>> open(Logger& logger, const Options& options = {});
  ~Fabric() override;
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;

  [[nodiscard]] Result<std::unique_ptr<PollGroup>> open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                                   CompletionHandler& handler) override;
  [[nodiscard]] std::uint32_t in_capsule_data_preferred() const noexcept override { return 4096; }
  [[nodiscard]] std::string_view name() const noexcept override { return "rdma"; }

 private:
  explicit Fabric(std::unique_ptr<Devices> devices);
  std::unique_ptr<Devices> devices_;
};

}  // namespace rbt::transport::verbs
