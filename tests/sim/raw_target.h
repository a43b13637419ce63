#pragma once
// A target without principles, for tests of the host side: it behaves until the test's script says otherwise, and then it
// says whatever it is told to. One block device in memory, one thread, no limits, no checks: nothing here is an example.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/nvme/admin_command.h"
#include "common/nvme/capsule.h"
#include "common/nvme/connect_private_data.h"
#include "common/nvme/fabrics.h"
#include "common/nvme/io_command.h"
#include "common/nvme/properties.h"
#include "common/nvme/types.h"
#include "common/uri.h"
#include "transport/memory/buffer_pool.h"
#include "transport/sim/network.h"

namespace rbt::test {

class RawTarget final : transport::ListenerHandler, transport::CompletionHandler {
 public:
  static constexpr std::uint32_t kBlockSize = 512;
  static constexpr std::uint64_t kBlocks = 8192;

  struct Capsule {
    nvme::SubmissionQueueEntry sqe;
    std::vector<std::byte> data;  ///< what came in the capsule behind the entry
  };

  /// One connection of the host's.
  class Link final : public transport::ConnectionHandler {
   public:
    Link(RawTarget& target, const nvme::CmRequest& request)
        : target_(target), request_(request), entries_(request.host_sends) {}
    [[nodiscard]] Qid qid() const noexcept { return request_.qid; }
    [[nodiscard]] const nvme::CmRequest& request() const noexcept { return request_; }

    /// An honest response: SQHD advances.
    void respond(const nvme::SubmissionQueueEntry& sqe, nvme::Status status = {}, std::uint64_t result = 0);
    void send(std::span<const std::byte> message);
    void send_invalidating(std::span<const std::byte> message, std::uint32_t rkey);
    /// RDMA READ of the command's data, then `then`.
    void fetch(const nvme::SubmissionQueueEntry& sqe, std::function<void(std::span<const std::byte>)> then);
    /// RDMA WRITE of `data` to where the command wants it, then an honest response.
    void push(const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> data, std::uint64_t result = 0);
    void drop();

   private:
    friend class RawTarget;
    void on_established(std::span<const std::byte>) override {}
    void on_disconnected(const transport::Disconnect&) override { drop(); }
    void on_closed() override;
    void post(transport::Opcode opcode, std::span<std::byte> buffer, std::size_t length, std::uint64_t address,
              std::uint32_t key, std::function<void(std::span<const std::byte>)> then);

    RawTarget& target_;
    nvme::CmRequest request_;
    transport::Connection* connection_ = nullptr;
    std::uint32_t entries_;  // of the submission queue: Connect's, once it has come
    std::uint16_t head_ = 0;
    bool closed_ = false;
  };

  explicit RawTarget(transport::sim::Network& network, std::string machine = "target");
  /// The host's connections must be gone, or go when this drops them.
  ~RawTarget() override;

  [[nodiscard]] Uri uri() const;
  [[nodiscard]] Uri discovery_uri() const;

  // What it says; change before the host connects.
  nvme::Capabilities capabilities;
  std::uint32_t controller_status = 1;  ///< CSTS after CC.EN
  nvme_id_ctrl controller{};
  nvme_id_ns name_space{};
  nvme_ns_list active{};
  std::uint16_t cntlid = 7;
  std::uint32_t queues_granted = 8;
  std::vector<nvmf_disc_log_entry> records;
  std::uint64_t generation = 1;
  std::optional<std::uint64_t> claimed_records;
  std::vector<std::byte> accept_data;            ///< private data of the reply; the default is honest
  std::optional<std::vector<std::byte>> refuse;  ///< refuses connections with these private data

  /// Sees every command first; true: it has taken care of it (or never will).
  std::function<bool(Link&, const Capsule&)> script;

  // What it saw.
  std::vector<std::byte> disk;
  std::vector<nvme::SubmissionQueueEntry> commands;  ///< all, in order of arrival
  std::optional<nvme::ConnectRequest> last_connect;
  std::uint64_t in_capsule = 0;  ///< commands with data in the capsule
  [[nodiscard]] std::size_t links() const noexcept { return links_.size(); }
  [[nodiscard]] std::size_t count(std::uint8_t opcode) const noexcept;
  [[nodiscard]] Link* link(Qid qid) noexcept;
  /// Asynchronous Event Requests that are held.
  void raise_event(std::uint32_t dw0);

 private:
  void on_request(std::unique_ptr<transport::ConnectionRequest> request) override;
  void on_listener_failed(const Error&) override {}
  void on_completions(std::span<const transport::Completion> batch) override;
  void serve(Link& link, const Capsule& capsule);
  void serve_fabrics(Link& link, const Capsule& capsule);
  void serve_admin(Link& link, const Capsule& capsule);
  void serve_io(Link& link, const Capsule& capsule);
  void with_data(Link& link, const Capsule& capsule, std::function<void(std::span<const std::byte>)> then);
  [[nodiscard]] std::vector<std::byte> discovery_log() const;

  struct Work {
    std::span<std::byte> buffer;
    std::size_t length = 0;
    std::function<void(std::span<const std::byte>)> then;
  };

  std::string machine_;
  std::unique_ptr<transport::Reactor> reactor_;
  std::unique_ptr<transport::BufferPool> pool_;
  std::unique_ptr<transport::PollGroup> group_;
  std::unique_ptr<transport::Listener> listener_;
  std::list<std::unique_ptr<Link>> links_;
  std::map<std::uint64_t, Work> works_;
  std::uint64_t next_work_ = 1;
  std::uint32_t configuration_ = 0;
  std::vector<std::pair<Link*, nvme::SubmissionQueueEntry>> held_events_;
};

inline constexpr const char* kRawNqn = "nqn.2024-01.io.example:raw";

}  // namespace rbt::test
