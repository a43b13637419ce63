#include "tests/sim/exchange.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "tests/sim/sim_under_test.h"

namespace rbt::test {

using namespace transport;
using sim::Network;

namespace {

/// What the server tells the client once: where to write.
struct Invitation {
  std::uint64_t address;
  std::uint64_t size;
  std::uint32_t rkey;
  std::uint32_t unused;
};

std::byte content(std::uint64_t round, std::size_t at) {
  return static_cast<std::byte>((round * 31 + at * 7 + at / 251) & 0xff);
}

}  // namespace

/// Invites whoever connects, checks what it is told was written, closes when the peer does.
class Exchange::Server final : public CompletionHandler, public ListenerHandler, public ConnectionHandler {
 public:
  explicit Server(Exchange& owner) : owner_(owner), memory_(owner.options_.size) {}

  bool open(Network& network, Reactor& reactor) {
    auto group = network.fabric("server").open_poll_group(reactor, {.receive_depth = 4, .receive_size = 64}, *this);
    if (!group) return false;
    group_ = std::move(*group);
    auto listener = group_->listen(SimUnderTest::uri("server", 4420), {}, *this);
    if (!listener) return false;
    listener_ = std::move(*listener);
    return true;
  }
  void on_request(std::unique_ptr<ConnectionRequest> request) override {
    if (open_) return;  // one at a time: destroying it refuses it
    if (auto connection = group_->accept(std::move(request), {}, *this)) {
      connection_ = *connection;
      open_ = true;
    }
  }
  void on_listener_failed(const Error&) override {}
  void on_established(std::span<const std::byte>) override {
    auto region = connection_->domain().register_memory({memory_.data(), memory_.size()}, RemoteAccess::write);
    if (!region) return connection_->close();
    region_ = std::move(*region);
    const Invitation invitation{reinterpret_cast<std::uintptr_t>(memory_.data()), memory_.size(), region_->rkey(), 0};
    std::memcpy(invitation_.data(), &invitation, sizeof invitation);
    const Segment segment{invitation_.data(), sizeof invitation, 0};
    const WorkRequest request{.copy_data = true, .segments = {&segment, 1}};
    if (connection_->post({&request, 1}) != PostResult::posted) connection_->close();
  }
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (completion.status == CompletionStatus::success && completion.type == Completion::Type::receive) {
        std::uint64_t round = 0;
        if (completion.message.bytes.size() != sizeof round) owner_.mistakes_.emplace_back("a message of another size");
        std::memcpy(&round, completion.message.bytes.data(), sizeof round);
        if (round != next_round_) owner_.mistakes_.emplace_back("a message lost, doubled or out of order");
        next_round_ = round + 1;
        for (std::size_t i = 0; i < memory_.size(); ++i)
          if (memory_[i] != content(round, i)) {
            owner_.mistakes_.emplace_back("a message seen before the write ahead of it");
            break;
          }
        group_->release(completion.message.buffer_id);
      } else if (completion.status != CompletionStatus::success && connection_ != nullptr) {
        connection_->close();
      }
    }
  }
  void on_disconnected(const Disconnect&) override { connection_->close(); }
  void on_closed() override {
    region_.reset();
    connection_ = nullptr;
    open_ = false;
  }
  void close() {
    listener_.reset();
    if (connection_ != nullptr) connection_->close();
  }
  [[nodiscard]] bool gone() const { return !group_ || group_->connections() == 0; }

 private:
  Exchange& owner_;
  std::vector<std::byte> memory_;
  std::array<std::byte, sizeof(Invitation)> invitation_{};
  std::unique_ptr<MemoryRegion> region_;
  std::unique_ptr<PollGroup> group_;
  std::unique_ptr<Listener> listener_;
  Connection* connection_ = nullptr;
  bool open_ = false;
  std::uint64_t next_round_ = 0;
};

class Exchange::Client final : public CompletionHandler, public ConnectionHandler {
 public:
  explicit Client(Exchange& owner) : owner_(owner), memory_(owner.options_.size) {}

  bool open(Network& network, Reactor& reactor) {
    auto group = network.fabric("client").open_poll_group(reactor, {.receive_depth = 4, .receive_size = 64}, *this);
    if (!group) return false;
    group_ = std::move(*group);
    auto connection = group_->connect(SimUnderTest::uri("server", 4420), {.send_depth = 4}, *this);
    if (!connection) return false;
    connection_ = *connection;
    return true;
  }
  void on_established(std::span<const std::byte>) override {
    auto region = connection_->domain().register_memory({memory_.data(), memory_.size()}, RemoteAccess::none);
    if (!region) return close();
    region_ = std::move(*region);
  }
  void on_completions(std::span<const Completion> batch) override {
    for (const Completion& completion : batch) {
      if (closing_) {
        if (completion.type == Completion::Type::receive && completion.status == CompletionStatus::success)
          group_->release(completion.message.buffer_id);
        continue;
      }
      if (completion.status != CompletionStatus::success) {
        close();
      } else if (completion.type == Completion::Type::receive) {
        std::memcpy(&invitation_, completion.message.bytes.data(), sizeof invitation_);
        group_->release(completion.message.buffer_id);
        next();
      } else {
        if (completion.wr_id != round_) owner_.mistakes_.emplace_back("a completion lost, doubled or out of order");
        ++round_;
        next();
      }
    }
  }
  void next() {
    if (closing_ || region_ == nullptr) return;
    if (round_ == owner_.options_.rounds) return close();
    for (std::size_t i = 0; i < memory_.size(); ++i)
      memory_[i] = content(round_, i);
    const Segment payload{memory_.data(), static_cast<std::uint32_t>(memory_.size()), region_->lkey()};
    const Segment note{reinterpret_cast<std::byte*>(&round_), sizeof round_, 0};
    const std::array<WorkRequest, 2> requests{WorkRequest{.opcode = Opcode::rdma_write,
                                                          .signaled = false,
                                                          .rkey = invitation_.rkey,
                                                          .remote_address = invitation_.address,
                                                          .segments = {&payload, 1}},
                                              WorkRequest{.copy_data = true, .wr_id = round_, .segments = {&note, 1}}};
    switch (connection_->post(requests)) {
      case PostResult::posted: return;
      case PostResult::full: owner_.mistakes_.emplace_back("full with nothing outstanding"); return close();
      case PostResult::dead: return close();
    }
  }
  void on_disconnected(const Disconnect&) override { close(); }
  void on_closed() override {
    if (!closing_) owner_.mistakes_.emplace_back("on_closed() without close()");
    region_.reset();
    connection_ = nullptr;
  }
  void close() {
    closing_ = true;
    if (connection_ != nullptr) connection_->close();
  }
  [[nodiscard]] bool gone() const { return !group_ || group_->connections() == 0; }
  [[nodiscard]] std::uint64_t rounds() const { return round_; }

 private:
  Exchange& owner_;
  std::vector<std::byte> memory_;
  Invitation invitation_{};
  std::unique_ptr<MemoryRegion> region_;
  std::unique_ptr<PollGroup> group_;
  Connection* connection_ = nullptr;
  bool closing_ = false;
  std::uint64_t round_ = 0;
};

Exchange::Exchange(Network& network, const Options& options) : network_(network), options_(options) {
  for (auto* reactor : {&server_reactor_, &client_reactor_})
    if (auto made = Reactor::create(network.clock(), null_logger(), {.waiter = &network})) *reactor = std::move(*made);
}

Exchange::~Exchange() = default;

void Exchange::run() {
  server_ = std::make_unique<Server>(*this);
  client_ = std::make_unique<Client>(*this);
  if (server_->open(network_, *server_reactor_) && client_->open(network_, *client_reactor_))
    // A minute is more than all timeouts together; a connection that failed in silence is closed after it.
    (void)network_.run_for(std::chrono::minutes(1), [this] { return client_->gone(); });
  client_->close();
  server_->close();
  const auto closed = network_.run_for(std::chrono::seconds(5), [this] { return client_->gone() && server_->gone(); });
  if (closed != Network::Outcome::done) mistakes_.emplace_back("not closed within 5 s");
}

bool Exchange::complete() const noexcept {
  return rounds_done() == options_.rounds;
}
std::uint64_t Exchange::rounds_done() const noexcept {
  return client_ ? client_->rounds() : 0;
}
const std::vector<std::string>& Exchange::mistakes() const noexcept {
  return mistakes_;
}

sim::FaultPlan Exchange::rough_weather() {
  sim::FaultPlan plan{.packet_lost = 50, .not_ready = 10, .stalled = 20, .connection_lost = 400};
  plan.of(sim::Operation::connect) = 20;
  plan.of(sim::Operation::accept) = 20;
  plan.of(sim::Operation::register_memory) = 20;
  plan.of(sim::Operation::post) = 100;
  plan.of(sim::Operation::completion) = 100;
  return plan;
}

}  // namespace rbt::test
