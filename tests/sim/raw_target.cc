#include "raw_target.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/nvme/text.h"

namespace rbt::test {

namespace {

template <typename T>
std::vector<std::byte> bytes_of(const T& object) {
  const auto* const begin = reinterpret_cast<const std::byte*>(&object);
  return {begin, begin + sizeof object};
}

nvme::KeyedData keyed(const nvme::SubmissionQueueEntry& sqe) {
  nvme::KeyedDescriptor wire;
  std::memcpy(&wire, sqe.sgl.raw.data(), sizeof wire);
  return {.address = wire.address.get(), .length = wire.length.get(), .key = wire.key.get()};
}

}  // namespace

RawTarget::RawTarget(transport::sim::Network& network, std::string machine)
    : disk(kBlocks * kBlockSize), machine_(std::move(machine)) {
  capabilities = nvme::Capabilities{}
                     .with_queue_entries_max(1024)
                     .with_timeout_half_seconds(4)
                     .with_nvm_command_set()
                     .with_contiguous_queues_required();
  nvme::set_padded(controller.mn, "raw");
  nvme::set_padded(controller.sn, "0001");
  nvme::set_padded(controller.fr, "1");
  controller.cntlid = nvme::to_le(cntlid);
  controller.mdts = 5;  // 128 KiB
  controller.kas = nvme::to_le(std::uint16_t{10});
  controller.cntrltype = NVME_CTRL_CNTRLTYPE_IO;
  controller.aerl = 3;
  controller.oaes = nvme::to_le(std::uint32_t{1} << 8);
  controller.sqes = 0x66;
  controller.cqes = 0x44;
  controller.maxcmd = nvme::to_le(std::uint16_t{1024});
  controller.nn = nvme::to_le(std::uint32_t{1});
  controller.oncs =
      nvme::to_le(std::uint16_t{NVME_CTRL_ONCS_COMPARE | NVME_CTRL_ONCS_DSM | NVME_CTRL_ONCS_WRITE_ZEROES});
  controller.vwc = NVME_CTRL_VWC_PRESENT;
  controller.sgls = nvme::to_le(std::uint32_t{1} << 0 | NVME_CTRL_SGLS_KEYED | NVME_CTRL_SGLS_OFFSET);
  std::strcpy(controller.subnqn, kRawNqn);
  controller.ioccsz = nvme::to_le(std::uint32_t{(64 + 4096) / 16});
  controller.iorcsz = nvme::to_le(std::uint32_t{1});
  controller.msdbd = 1;
  name_space.nsze = nvme::to_le(std::uint64_t{kBlocks});
  name_space.ncap = name_space.nsze;
  name_space.lbaf[0].ds = 9;
  std::fill(std::begin(name_space.nguid), std::end(name_space.nguid), std::uint8_t{0x11});
  active.ns[0] = nvme::to_le(std::uint32_t{1});
  accept_data = bytes_of(nvme::encode_cm_accept(1024));

  auto& fabric = network.fabric(machine_);
  reactor_ = std::move(transport::Reactor::create(network.clock(), null_logger(), {.waiter = &network}).value());
  pool_ = std::move(
      transport::BufferPool::create(Bytes(64 * kMiB), transport::RemoteAccess::none, {.name = "raw-target"}).value());
  group_ =
      std::move(fabric.open_poll_group(*reactor_, {.receive_depth = 2048, .receive_size = 8192 + 64}, *this).value());
  listener_ = std::move(group_->listen(discovery_uri(), {}, *this).value());
}

RawTarget::~RawTarget() {
  listener_.reset();
  script = nullptr;
  for (const auto& link : links_)
    link->drop();
  (void)reactor_->run_until([this] { return links_.empty(); }, reactor_->clock().now() + std::chrono::seconds(10));
  check(links_.empty(), "a raw target's connections go when dropped");
}

Uri RawTarget::uri() const {
  return Uri::parse("nvme+sim://" + machine_ + "/" + kRawNqn).value();
}
Uri RawTarget::discovery_uri() const {
  return Uri::parse("nvme+sim://" + machine_).value();
}

std::size_t RawTarget::count(std::uint8_t opcode) const noexcept {
  return static_cast<std::size_t>(
      std::count_if(commands.begin(), commands.end(), [opcode](const auto& sqe) { return sqe.opcode == opcode; }));
}

RawTarget::Link* RawTarget::link(Qid qid) noexcept {
  for (const auto& link : links_)
    if (link->qid() == qid) return link.get();
  return nullptr;
}

void RawTarget::raise_event(std::uint32_t dw0) {
  check(!held_events_.empty(), "the host has sent an Asynchronous Event Request");
  const auto [link, sqe] = held_events_.front();
  held_events_.erase(held_events_.begin());
  link->respond(sqe, {}, dw0);
}

// ---- links

void RawTarget::Link::respond(const nvme::SubmissionQueueEntry& sqe, nvme::Status status, std::uint64_t result) {
  nvme::CompletionQueueEntry cqe;
  head_ = static_cast<std::uint16_t>((head_ + 1u) % entries_);
  cqe.result = result;
  cqe.sqhd = head_;
  cqe.cid = sqe.cid;
  cqe.status_field = status.to_completion();
  send(nvme::wire_bytes(cqe));
}

void RawTarget::Link::send(std::span<const std::byte> message) {
  if (connection_ == nullptr) return;
  const auto buffer = target_.pool_->allocate(std::max<std::size_t>(message.size(), 1));
  std::copy(message.begin(), message.end(), buffer.begin());
  post(transport::Opcode::send, buffer, message.size(), 0, 0, {});
}

void RawTarget::Link::send_invalidating(std::span<const std::byte> message, std::uint32_t rkey) {
  if (connection_ == nullptr) return;
  const auto buffer = target_.pool_->allocate(message.size());
  std::copy(message.begin(), message.end(), buffer.begin());
  post(transport::Opcode::send_with_invalidate, buffer, message.size(), 0, rkey, {});
}

void RawTarget::Link::fetch(const nvme::SubmissionQueueEntry& sqe,
                            std::function<void(std::span<const std::byte>)> then) {
  const nvme::KeyedData where = keyed(sqe);
  post(transport::Opcode::rdma_read, target_.pool_->allocate(where.length), where.length, where.address, where.key,
       std::move(then));
}

void RawTarget::Link::push(const nvme::SubmissionQueueEntry& sqe, std::span<const std::byte> data,
                           std::uint64_t result) {
  const nvme::KeyedData where = keyed(sqe);
  const std::size_t length = std::min<std::size_t>(where.length, data.size());
  if (length != 0) {
    const auto buffer = target_.pool_->allocate(length);
    std::copy_n(data.begin(), length, buffer.begin());
    post(transport::Opcode::rdma_write, buffer, length, where.address, where.key, {});
  }
  respond(sqe, {}, result);
}

void RawTarget::Link::post(transport::Opcode opcode, std::span<std::byte> buffer, std::size_t length,
                           std::uint64_t address, std::uint32_t key,
                           std::function<void(std::span<const std::byte>)> then) {
  check(!buffer.empty(), "the raw target has a buffer");
  const transport::MemoryRegion* const region =
      connection_ != nullptr ? target_.pool_->memory().in(connection_->domain()) : nullptr;
  if (region == nullptr) return target_.pool_->free(buffer);
  const std::uint64_t id = target_.next_work_++;
  target_.works_[id] = {buffer, length, std::move(then)};
  const transport::Segment segment{buffer.data(), static_cast<std::uint32_t>(length), region->lkey()};
  transport::WorkRequest request;
  request.opcode = opcode;
  request.rkey = key;
  request.remote_address = address;
  request.wr_id = id;
  request.segments = std::span(&segment, 1);
  if (connection_->post(std::span(&request, 1)) == transport::PostResult::posted) return;
  target_.pool_->free(buffer);
  target_.works_.erase(id);
  drop();  // it has no patience: an answer that cannot be sent now is never sent
}

void RawTarget::Link::drop() {
  if (connection_ != nullptr) connection_->close();
}

void RawTarget::Link::on_closed() {
  connection_ = nullptr;
  closed_ = true;
  std::erase_if(target_.held_events_, [this](const auto& held) { return held.first == this; });
  std::erase_if(target_.links_, [this](const auto& link) { return link.get() == this; });
}

// ---- the fabric's calls

void RawTarget::on_request(std::unique_ptr<transport::ConnectionRequest> request) {
  const auto wanted = nvme::parse_cm_request(request->private_data());
  check(wanted.has_value(), "the host sends proper private data");
  if (refuse) return request->reject(*refuse);
  auto link = std::make_unique<Link>(*this, *wanted);
  auto connection = group_->accept(std::move(request), {.private_data = accept_data, .send_depth = 4096}, *link);
  if (!connection) return;
  link->connection_ = *connection;
  const bool reachable = pool_->memory().ensure((*connection)->domain()).has_value();
  links_.push_back(std::move(link));
  if (!reachable) links_.back()->drop();
}

void RawTarget::on_completions(std::span<const transport::Completion> batch) {
  for (const transport::Completion& completion : batch) {
    auto* const link = static_cast<Link*>(completion.handler);
    if (completion.type == transport::Completion::Type::receive) {
      if (completion.status != transport::CompletionStatus::success) continue;
      Capsule capsule;
      capsule.sqe = nvme::parse_command_capsule(completion.message.bytes).value();
      capsule.data.assign(completion.message.bytes.begin() + sizeof capsule.sqe, completion.message.bytes.end());
      group_->release(completion.message.buffer_id);
      commands.push_back(capsule.sqe);
      if (!capsule.data.empty()) ++in_capsule;
      if (link->connection_ == nullptr) continue;
      if (!script || !script(*link, capsule)) serve(*link, capsule);
      continue;
    }
    const auto found = works_.find(completion.wr_id);
    if (found == works_.end()) continue;
    const Work work = std::move(found->second);
    works_.erase(found);
    const bool good = completion.status == transport::CompletionStatus::success;
    if (good && work.then) work.then(work.buffer.first(work.length));
    pool_->free(work.buffer);
    if (!good && link->connection_ != nullptr) link->drop();
  }
}

// ---- the honest part

void RawTarget::serve(Link& link, const Capsule& capsule) {
  if (capsule.sqe.is_fabrics()) return serve_fabrics(link, capsule);
  if (link.qid() == Qid(0)) return serve_admin(link, capsule);
  serve_io(link, capsule);
}

void RawTarget::serve_fabrics(Link& link, const Capsule& capsule) {
  const auto& sqe = capsule.sqe;
  if (sqe.fabrics_type() == nvme::FabricsType::connect) {
    with_data(link, capsule, [this, &link, sqe](std::span<const std::byte> data) {
      last_connect = nvme::parse_connect(sqe, data).value();
      link.entries_ = last_connect->queue_entries;
      link.respond(sqe, {}, nvme::encode_connect_response({.cntlid = Cntlid(cntlid)}));
    });
    return;
  }
  const auto access = nvme::parse_property(sqe).value();
  if (sqe.fabrics_type() == nvme::FabricsType::property_set) {
    configuration_ = static_cast<std::uint32_t>(access.value);
    return link.respond(sqe);
  }
  std::uint64_t value = 0;
  if (access.offset == 0) value = capabilities.raw;
  if (access.offset == 8) value = nvme::Version::of(2, 0).raw;
  if (access.offset == 0x14) value = configuration_;
  if (access.offset == 0x1c) {
    const nvme::Configuration configuration{configuration_};
    value = configuration.enabled() ? controller_status : 0;
    if (configuration.shutdown() != nvme::Shutdown::none) value |= 2u << 2;
  }
  link.respond(sqe, {}, value);
}

void RawTarget::serve_admin(Link& link, const Capsule& capsule) {
  const auto& sqe = capsule.sqe;
  const auto opcode = static_cast<nvme::AdminOpcode>(sqe.opcode);
  if (opcode == nvme::AdminOpcode::identify) {
    const auto identify = nvme::parse_identify(sqe);
    if (identify.cns == 0) return link.push(sqe, bytes_of(name_space));
    if (identify.cns == 1) return link.push(sqe, bytes_of(controller));
    if (identify.cns == 2) return link.push(sqe, bytes_of(active));
    if (identify.cns == 3) return link.push(sqe, std::vector<std::byte>(4096));
    return link.respond(sqe, nvme::Status::permanent(nvme::StatusCode::invalid_field));
  }
  if (opcode == nvme::AdminOpcode::set_features) {
    const auto features = nvme::parse_set_features(sqe);
    const std::uint32_t queues = queues_granted - 1;
    return link.respond(sqe, {}, features.fid == NVME_FEAT_FID_NUM_QUEUES ? queues | queues << 16 : 0);
  }
  if (opcode == nvme::AdminOpcode::get_log_page) {
    const auto log = nvme::parse_get_log_page(sqe).value();
    std::vector<std::byte> out(log.length.value());
    if (log.lid == NVME_LOG_LID_DISCOVER) (void)nvme::copy_log_page(discovery_log(), log.offset, out);
    return link.push(sqe, out);
  }
  if (opcode == nvme::AdminOpcode::async_event_request) return held_events_.emplace_back(&link, sqe), void();
  if (opcode == nvme::AdminOpcode::keep_alive) return link.respond(sqe);
  link.respond(sqe, nvme::Status::permanent(nvme::StatusCode::invalid_opcode));
}

std::vector<std::byte> RawTarget::discovery_log() const {
  std::vector<std::byte> log(sizeof(nvmf_discovery_log));
  const nvme::Le64 genctr = generation;
  const nvme::Le64 numrec = claimed_records.value_or(records.size());
  std::memcpy(log.data(), &genctr, sizeof genctr);
  std::memcpy(log.data() + offsetof(nvmf_discovery_log, numrec), &numrec, sizeof numrec);
  for (const auto& record : records) {
    const auto bytes = bytes_of(record);
    log.insert(log.end(), bytes.begin(), bytes.end());
  }
  return log;
}

void RawTarget::serve_io(Link& link, const Capsule& capsule) {
  const auto& sqe = capsule.sqe;
  const auto opcode = static_cast<nvme::IoOpcode>(sqe.opcode);
  const auto block = nvme::parse_block_command(sqe);
  const auto place = [this](Lba first, Blocks count) {
    return std::span(disk).subspan(first.value() * kBlockSize, count.value() * kBlockSize);
  };
  if (opcode == nvme::IoOpcode::flush) return link.respond(sqe);
  if (opcode == nvme::IoOpcode::read) return link.push(sqe, place(block.first, block.count));
  if (opcode == nvme::IoOpcode::write_zeroes) {
    std::ranges::fill(place(block.first, block.count), std::byte{0});
    return link.respond(sqe);
  }
  with_data(link, capsule, [=, &link](std::span<const std::byte> data) {
    if (opcode == nvme::IoOpcode::write) {
      std::ranges::copy(data, place(block.first, block.count).begin());
      return link.respond(sqe);
    }
    if (opcode == nvme::IoOpcode::compare)
      return link.respond(sqe, std::ranges::equal(data, place(block.first, block.count))
                                   ? nvme::Status()
                                   : nvme::StatusCode::compare_failure);
    check(opcode == nvme::IoOpcode::dataset_management, "the raw target knows the command");
    const auto ranges = nvme::DatasetRanges::parse(nvme::parse_dataset_management(sqe), data).value();
    for (std::uint32_t i = 0; i < ranges.size(); ++i)
      std::ranges::fill(place(ranges[i].first, ranges[i].count), std::byte{0});
    link.respond(sqe);
  });
}

void RawTarget::with_data(Link& link, const Capsule& capsule, std::function<void(std::span<const std::byte>)> then) {
  if (!capsule.data.empty()) return then(capsule.data);
  link.fetch(capsule.sqe, std::move(then));
}

}  // namespace rbt::test
