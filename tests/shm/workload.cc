#include "tests/shm/workload.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace rbt::test {

using namespace transport;

namespace {

// The workload runs in programs without a test framework too: what cannot fail says so and ends the process.
template <typename T>
T must(Result<T> result) {
  if (!result) {
    std::fprintf(stderr, "workload: %s\n", result.error().message().c_str());
    std::abort();
  }
  return std::move(*result);
}

SharedMemory make_memory() {
  return must(SharedMemory::create(Bytes(kWorkloadSlot * kWorkloadDepth), {.name = "workload"}));
}

}  // namespace

void fill_pattern(std::span<std::byte> bytes, std::uint64_t seed) noexcept {
  std::uint64_t state = seed;
  for (std::size_t i = 0; i < bytes.size(); i += sizeof state) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    std::memcpy(bytes.data() + i, &state, std::min(sizeof state, bytes.size() - i));
  }
}

bool is_pattern(std::span<const std::byte> bytes, std::uint64_t seed) noexcept {
  std::uint64_t state = seed;
  for (std::size_t i = 0; i < bytes.size(); i += sizeof state) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    if (std::memcmp(bytes.data() + i, &state, std::min(sizeof state, bytes.size() - i)) != 0) return false;
  }
  return true;
}

// ---- The server's side of one connection.

class WorkloadServer::Session final : public ConnectionHandler {
 public:
  explicit Session(WorkloadServer& server)
      : server_(server),
        memory_(make_memory()),
        region_(must(server.fabric_.domain().register_memory(memory_.span(), RemoteAccess::none))) {}

  void on_established(std::span<const std::byte>) override {}
  void on_disconnected(const Disconnect& disconnect) override {
    ++server_.ended;
    server_.last_end = server_.reactor_.clock().now();
    server_.last_error = disconnect.error.message();
    server_.last_reason = disconnect.reason;
    connection->close();
  }
  void on_closed() override {
    connection = nullptr;
    std::erase_if(server_.sessions_, [this](const auto& session) { return session.get() == this; });
  }

  void on_command(std::span<const std::byte> bytes) {
    Command command;
    if (bytes.size() != sizeof command) return refuse();
    std::memcpy(&command, bytes.data(), sizeof command);
    if (command.slot >= kWorkloadDepth || command.length > kWorkloadSlot) return refuse();
    commands_[command.slot] = command;
    const Segment data{memory_.data() + command.slot * kWorkloadSlot, command.length, region_->lkey()};
    if (command.kind == Command::Kind::store) {
      const WorkRequest read{.opcode = Opcode::rdma_read,
                             .rkey = command.rkey,
                             .remote_address = command.address,
                             .wr_id = command.slot,
                             .segments = {&data, 1}};
      post({&read, 1});
      return;
    }
    fill_pattern({data.data, data.length}, command.seed);
    const Response response{command.slot, 1, command.seed};
    const Segment answer = answer_segment(response);
    const std::array requests{WorkRequest{.opcode = Opcode::rdma_write,
                                          .signaled = false,
                                          .rkey = command.rkey,
                                          .remote_address = command.address,
                                          .segments = {&data, 1}},
                              WorkRequest{.copy_data = true, .wr_id = kAnswer, .segments = {&answer, 1}}};
    post(requests);
  }
  void on_sent(const Completion& completion) {
    if (completion.status != CompletionStatus::success) return;  // on_disconnected() follows
    if (completion.wr_id == kAnswer) {
      ++server_.served;
      return;
    }
    const Command& command = commands_[completion.wr_id];
    const bool good = is_pattern({memory_.data() + command.slot * kWorkloadSlot, command.length}, command.seed);
    if (!good) ++server_.corrupt;
    const Response response{command.slot, good ? 1u : 0u, command.seed};
    const Segment answer = answer_segment(response);
    const WorkRequest send{.copy_data = true, .wr_id = kAnswer, .segments = {&answer, 1}};
    post({&send, 1});
  }

  Connection* connection = nullptr;

 private:
  static constexpr std::uint64_t kAnswer = 1000;
  static Segment answer_segment(const Response& response) {  // copied by post()
    return {reinterpret_cast<std::byte*>(const_cast<Response*>(&response)), sizeof response, 0};
  }
  void post(std::span<const WorkRequest> requests) {
    switch (connection->post(requests)) {
      case PostResult::posted: return;
      case PostResult::dead: return;           // on_disconnected() follows
      case PostResult::full: return refuse();  // more commands than kWorkloadDepth
    }
  }
  void refuse() {
    ++server_.refused_commands;
    connection->close();
  }
  WorkloadServer& server_;
  SharedMemory memory_;
  std::unique_ptr<MemoryRegion> region_;
  std::array<Command, kWorkloadDepth> commands_{};
};

WorkloadServer::WorkloadServer(shm::Fabric& fabric, Reactor& reactor)
    : fabric_(fabric),
      reactor_(reactor),
      group_(must(fabric.open_poll_group(reactor, {.receive_depth = 256}, *this))) {}
WorkloadServer::~WorkloadServer() = default;

Result<void> WorkloadServer::listen(const Uri& address, const ListenOptions& options) {
  auto listener = group_->listen(address, options, *this);
  if (!listener) return tl::unexpected(std::move(listener.error()));
  listener_ = std::move(*listener);
  return {};
}

void WorkloadServer::on_request(std::unique_ptr<ConnectionRequest> request) {
  auto session = std::make_unique<Session>(*this);
  auto connection = group_->accept(std::move(request), {}, *session);
  if (!connection) return;
  session->connection = *connection;
  sessions_.push_back(std::move(session));
}

void WorkloadServer::on_completions(std::span<const Completion> batch) {
  for (const Completion& completion : batch) {
    auto& session = *static_cast<Session*>(completion.handler);
    if (completion.type != Completion::Type::receive) {
      session.on_sent(completion);
      continue;
    }
    session.on_command(completion.message.bytes);
    group_->release(completion.message.buffer_id);
  }
}

void WorkloadServer::close_all() {
  listener_.reset();
  for (const auto& session : sessions_)
    session->connection->close();
}

// ---- The client.

WorkloadClient::WorkloadClient(shm::Fabric& fabric, Reactor& reactor, std::uint64_t seed)
    : reactor_(reactor),
      random_(seed),
      memory_(make_memory()),
      region_(must(fabric.domain().register_memory(memory_.span(), RemoteAccess::read_write))),
      group_(must(fabric.open_poll_group(reactor, {.receive_depth = 64}, *this))) {}
WorkloadClient::~WorkloadClient() = default;

Result<void> WorkloadClient::connect(const Uri& address) {
  established = false;
  disconnected.reset();
  auto connection = group_->connect(address, {}, *this);
  if (!connection) return tl::unexpected(std::move(connection.error()));
  connection_ = *connection;
  closed = false;
  return {};
}

void WorkloadClient::close() {
  if (connection_ != nullptr) connection_->close();
}

std::span<std::byte> WorkloadClient::slot_bytes(std::uint32_t slot) {
  return {memory_.data() + slot * kWorkloadSlot, commands_[slot].length};
}

void WorkloadClient::submit(std::uint32_t slot) {
  Command& command = commands_[slot];
  command.slot = slot;
  command.seed = random_();
  command.kind = random_.once_in(2) ? Command::Kind::fetch : Command::Kind::store;
  command.length = static_cast<std::uint32_t>(1 + random_.below(kWorkloadSlot));
  command.address = reinterpret_cast<std::uintptr_t>(memory_.data() + slot * kWorkloadSlot);
  command.rkey = region_->rkey();
  if (command.kind == Command::Kind::store) fill_pattern(slot_bytes(slot), command.seed);
  const Segment capsule{reinterpret_cast<std::byte*>(&command), sizeof command, 0};
  const WorkRequest send{.copy_data = true, .segments = {&capsule, 1}};
  if (connection_->post({&send, 1}) == PostResult::full) std::abort();  // never more than kWorkloadDepth
}

void WorkloadClient::on_established(std::span<const std::byte>) {
  established = true;
  for (std::uint32_t slot = 0; slot < kWorkloadDepth; ++slot)
    submit(slot);
}

void WorkloadClient::on_completions(std::span<const Completion> batch) {
  for (const Completion& completion : batch) {
    if (completion.type != Completion::Type::receive) continue;
    Response response;
    if (completion.message.bytes.size() == sizeof response) {
      std::memcpy(&response, completion.message.bytes.data(), sizeof response);
      on_response(response);
    } else {
      ++corrupt;
    }
    group_->release(completion.message.buffer_id);
  }
}

void WorkloadClient::on_response(const Response& response) {
  if (response.slot >= kWorkloadDepth) {
    ++corrupt;
    return;
  }
  const Command& command = commands_[response.slot];
  const bool good = response.seed == command.seed && response.good == 1 &&
                    (command.kind == Command::Kind::store || is_pattern(slot_bytes(response.slot), command.seed));
  if (!good) ++corrupt;
  ++completed;
  submit(response.slot);
}

void WorkloadClient::on_disconnected(const Disconnect& disconnect) {
  disconnected = disconnect.reason;
  error = disconnect.error.message();
  disconnected_at = reactor_.clock().now();
}

void WorkloadClient::on_closed() {
  connection_ = nullptr;
  closed = true;
}

}  // namespace rbt::test
