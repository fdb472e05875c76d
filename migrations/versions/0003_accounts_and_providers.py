"""One-use and personal access tokens, provider keys, plans, web contents, and fine-tunings at providers."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('one_use_tokens',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('purpose', sa.String(length=20), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('used_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_one_use_tokens_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_one_use_tokens')),
    sa.UniqueConstraint('digest', name=op.f('uq_one_use_tokens_digest')),
    sa.UniqueConstraint('public_id', name=op.f('uq_one_use_tokens_public_id'))
    )
    op.create_index(op.f('ix_one_use_tokens_user_id'), 'one_use_tokens', ['user_id'], unique=False)
    op.create_table('personal_access_tokens',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('name', sa.String(length=100), nullable=False),
    sa.Column('digest', sa.String(length=64), nullable=False),
    sa.Column('prefix', sa.String(length=16), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_personal_access_tokens_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_personal_access_tokens')),
    sa.UniqueConstraint('digest', name=op.f('uq_personal_access_tokens_digest')),
    sa.UniqueConstraint('public_id', name=op.f('uq_personal_access_tokens_public_id'))
    )
    op.create_index(op.f('ix_personal_access_tokens_user_id'), 'personal_access_tokens', ['user_id'], unique=False)
    op.create_table('provider_keys',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('provider', sa.String(length=30), nullable=False),
    sa.Column('key_id', sa.String(length=16), nullable=False),
    sa.Column('ciphertext', sa.LargeBinary(), nullable=False),
    sa.Column('masked', sa.String(length=40), nullable=False),
    sa.Column('verified_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_provider_keys_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_provider_keys')),
    sa.UniqueConstraint('public_id', name=op.f('uq_provider_keys_public_id')),
    sa.UniqueConstraint('user_id', 'provider', name=op.f('uq_provider_keys_user_id_provider'))
    )
    op.create_table('subscriptions',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('public_id', sa.Uuid(), nullable=False),
    sa.Column('user_id', sa.BigInteger(), nullable=False),
    sa.Column('stripe_customer_id', sa.String(length=100), nullable=True),
    sa.Column('stripe_subscription_id', sa.String(length=100), nullable=True),
    sa.Column('plan', sa.String(length=30), nullable=False),
    sa.Column('status', sa.String(length=30), nullable=False),
    sa.Column('current_period_start', sa.DateTime(timezone=True), nullable=True),
    sa.Column('current_period_end', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('clock_timestamp()'), nullable=False),
    sa.ForeignKeyConstraint(['user_id'], ['users.id'], name=op.f('fk_subscriptions_user_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_subscriptions')),
    sa.UniqueConstraint('public_id', name=op.f('uq_subscriptions_public_id')),
    sa.UniqueConstraint('stripe_subscription_id', name=op.f('uq_subscriptions_stripe_subscription_id')),
    sa.UniqueConstraint('user_id', name=op.f('uq_subscriptions_user_id'))
    )
    op.create_index(op.f('ix_subscriptions_stripe_customer_id'), 'subscriptions', ['stripe_customer_id'], unique=False)
    op.add_column('contents', sa.Column('url', sa.Text(), nullable=True))
    op.add_column('contents', sa.Column('error_code', sa.String(length=60), nullable=True))
    op.add_column('contents', sa.Column('error_message', sa.Text(), nullable=True))
    op.add_column('contents', sa.Column('job_id', sa.BigInteger(), nullable=True))
    op.add_column('contents', sa.Column('meta', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False))
    op.create_foreign_key(op.f('fk_contents_job_id'), 'contents', 'jobs', ['job_id'], ['id'], ondelete='SET NULL')
    op.add_column('fine_tunings', sa.Column('provider_state', postgresql.JSONB(astext_type=sa.Text()), server_default='{}', nullable=False))
    op.add_column('fine_tunings', sa.Column('submitted_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('fine_tunings', sa.Column('next_poll_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('fine_tunings', sa.Column('poll_failures', sa.Integer(), server_default='0', nullable=False))
    op.add_column('fine_tunings', sa.Column('cancel_requested_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('fine_tunings', sa.Column('retrained_from_id', sa.BigInteger(), nullable=True))
    op.alter_column('fine_tunings', 'method',
               existing_type=sa.VARCHAR(length=10),
               type_=sa.String(length=20),
               existing_nullable=False)
    op.alter_column('fine_tunings', 'external_id',
               existing_type=sa.VARCHAR(length=200),
               type_=sa.String(length=300),
               existing_nullable=True)
    op.create_index('ix_fine_tunings_next_poll_at', 'fine_tunings', ['next_poll_at'], unique=False, postgresql_where=sa.text('next_poll_at IS NOT NULL'))
    op.create_foreign_key(op.f('fk_fine_tunings_retrained_from_id'), 'fine_tunings', 'fine_tunings', ['retrained_from_id'], ['id'], ondelete='SET NULL')
    op.add_column('user_sessions', sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('users', sa.Column('email_verified_at', sa.DateTime(timezone=True), nullable=True))
    op.add_column('users', sa.Column('language', sa.String(length=8), server_default='fr', nullable=False))


def downgrade() -> None:
    op.drop_column('users', 'language')
    op.drop_column('users', 'email_verified_at')
    op.drop_column('user_sessions', 'last_used_at')
    op.drop_constraint(op.f('fk_fine_tunings_retrained_from_id'), 'fine_tunings', type_='foreignkey')
    op.drop_index('ix_fine_tunings_next_poll_at', table_name='fine_tunings', postgresql_where=sa.text('next_poll_at IS NOT NULL'))
    op.alter_column('fine_tunings', 'external_id',
               existing_type=sa.String(length=300),
               type_=sa.VARCHAR(length=200),
               existing_nullable=True)
    op.alter_column('fine_tunings', 'method',
               existing_type=sa.String(length=20),
               type_=sa.VARCHAR(length=10),
               existing_nullable=False)
    op.drop_column('fine_tunings', 'retrained_from_id')
    op.drop_column('fine_tunings', 'cancel_requested_at')
    op.drop_column('fine_tunings', 'poll_failures')
    op.drop_column('fine_tunings', 'next_poll_at')
    op.drop_column('fine_tunings', 'submitted_at')
    op.drop_column('fine_tunings', 'provider_state')
    op.drop_constraint(op.f('fk_contents_job_id'), 'contents', type_='foreignkey')
    op.drop_column('contents', 'meta')
    op.drop_column('contents', 'job_id')
    op.drop_column('contents', 'error_message')
    op.drop_column('contents', 'error_code')
    op.drop_column('contents', 'url')
    op.drop_index(op.f('ix_subscriptions_stripe_customer_id'), table_name='subscriptions')
    op.drop_table('subscriptions')
    op.drop_table('provider_keys')
    op.drop_index(op.f('ix_personal_access_tokens_user_id'), table_name='personal_access_tokens')
    op.drop_table('personal_access_tokens')
    op.drop_index(op.f('ix_one_use_tokens_user_id'), table_name='one_use_tokens')
    op.drop_table('one_use_tokens')
