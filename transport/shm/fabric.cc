#include "transport/shm/fabric.h"

#include "transport/shm/group.h"

namespace rbt::transport::shm {

class Fabric::Parts {
 public:
  Parts(const Options& given, Random random) : options(given), domain(random, given.revoke_timeout) {}
  Options options;
  Domain domain;
};

Fabric::Fabric(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Fabric::~Fabric() = default;

Result<std::unique_ptr<Fabric>> Fabric::open(const Options& options, Random& random) {
  return std::unique_ptr<Fabric>(new Fabric(std::make_unique<Parts>(options, random.fork())));
}

Result<std::unique_ptr<PollGroup>> Fabric::open_poll_group(Reactor& reactor, const PollGroupOptions& options,
                                                           CompletionHandler& handler) {
  return Group::create(reactor, parts_->domain, parts_->options, options, handler);
}

ProtectionDomain& Fabric::domain() noexcept {
  return parts_->domain;
}

}  // namespace rbt::transport::shm
